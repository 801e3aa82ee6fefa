"""The BlockFFN layer: router, union of active experts, sparse up and down projections."""

from __future__ import annotations

import tvm.relax.frontend.nn as nn

from .layers import Build, Linear, call, matrix_parameter, vector_parameter


class BlockFFN(nn.Module):
    """y = residual + c * sum_e down_e(silu(up_e(x)) * A_e(x)), A = norm(relu(router(x))) (paper eq. 1-3)."""

    def __init__(self, build: Build, prefix: str) -> None:
        c, self.config = build.config, build.config
        kernels, tiles, weight_format = build.kernels, build.tiles, build.quantization.weight_format
        model_dtype = build.quantization.model_dtype
        experts, size, hidden = c.num_experts, c.expert_size, c.hidden_size
        up, down = f"{prefix}.up_proj", f"{prefix}.down_proj"
        self.router_proj = Linear(build, "router_proj", hidden, experts, [f"{prefix}.router_proj"],
                                  weight_format=model_dtype)
        self.router_norm_weight = None
        if c.norm_after_router == "rms":
            self.router_norm_weight = vector_parameter(build, [f"{prefix}.router_norm.weight"], experts)
        self.up_proj = matrix_parameter((experts, size, hidden), weight_format, tiles.expert_tile(size), up,
                                        lambda checkpoint: checkpoint.read(up))
        self.down_proj = matrix_parameter((experts, hidden, size), weight_format, tiles.output_tile, down,
                                          lambda checkpoint: checkpoint.read(down))
        self.router = kernels.router(tiles, experts, c.norm_after_router, c.rms_norm_eps, c.norm_scale, model_dtype)
        self.union, self.all_experts = kernels.union(experts), kernels.union(experts, dense=True)
        self.sparse_up = kernels.sparse_up(tiles, experts, hidden, size, weight_format)
        self.sparse_down = kernels.sparse_down(tiles, experts, hidden, size, weight_format, c.residual_scale)

    def forward(self, x: nn.Tensor, residual: nn.Tensor, dense: bool) -> tuple[nn.Tensor, nn.Tensor]:
        """x, residual f32 [n, H] -> (y f32 [n, H], scores f32 [n, E]). ``dense`` computes every expert."""
        c, n = self.config, x.shape[0]
        experts = c.num_experts
        norm = [] if self.router_norm_weight is None else [self.router_norm_weight]
        scores = call(self.router, "router", [self.router_proj(x), *norm], ((n, experts), "float32"))
        used = call(self.all_experts if dense else self.union, "union", [scores],
                    ((experts,), "int32"), ((1,), "int32"), ((experts,), "int32"), ((experts, n), "int32"))
        act = call(self.sparse_up, "sparse_up", [x, scores, *used, self.up_proj],
                   ((experts, n, c.expert_size), "float32"))
        y = call(self.sparse_down, "sparse_down", [act, *used, self.down_proj, residual],
                 ((n, c.hidden_size), "float32"))
        return y, scores
