"""The BlockFFN layer: router, union of active experts, sparse up and down projections."""

from __future__ import annotations

import tvm.relax.frontend.nn as nn

from .layers import Build, activation_spec, call, matrix_parameter, vector_parameter


class BlockFFN(nn.Module):
    """y = x + c * sum_e down_e(silu(up_e(h)) * A_e(h)), h = rms_norm(x), A = norm(relu(router(h))) (paper eq. 1-3).

    ``norm``: checkpoint name of the norm before it.
    """

    def __init__(self, build: Build, prefix: str, norm: str) -> None:
        c, self.build = build.config, build
        kernels, tiles, weight_format = build.kernels, build.tiles, build.quantization.weight_format
        model_dtype, activations = build.quantization.model_dtype, build.activations
        experts, size, hidden = c.num_experts, c.expert_size, c.hidden_size
        up, down, router = f"{prefix}.up_proj", f"{prefix}.down_proj", f"{prefix}.router_proj.weight"
        self.norm_weight = vector_parameter(build, [f"{norm}.weight"], hidden)
        self.router_proj = matrix_parameter((experts, hidden), model_dtype, tiles.output_tile, router,
                                            lambda checkpoint: checkpoint.read(router))
        self.router_norm_weight = None
        if c.norm_after_router == "rms":
            self.router_norm_weight = vector_parameter(build, [f"{prefix}.router_norm.weight"], experts)
        self.up_proj = matrix_parameter((experts, size, hidden), weight_format, tiles.expert_tile(size), up,
                                        lambda checkpoint: checkpoint.read(up))
        self.down_proj = matrix_parameter((experts, hidden, size), weight_format, tiles.output_tile, down,
                                          lambda checkpoint: checkpoint.read(down))
        self.router = kernels.router(tiles, experts, hidden, c.norm_after_router, c.rms_norm_eps, c.norm_scale,
                                     model_dtype, activations)
        self.union, self.all_experts = kernels.union(experts), kernels.union(experts, dense=True)
        self.sparse_up = kernels.sparse_up(tiles, experts, hidden, size, weight_format, activations)
        self.sparse_down = kernels.sparse_down(tiles, experts, hidden, size, weight_format, c.residual_scale,
                                               activations)

    def forward(self, x: nn.Tensor, dense: bool) -> tuple[nn.Tensor, nn.Tensor]:
        """x f32 [n, H] -> (y f32 [n, H], scores f32 [n, E]). ``dense`` computes every expert."""
        c, n = self.build.config, x.shape[0]
        experts = c.num_experts
        weights = [self.norm_weight, self.router_proj, self.router_norm_weight]
        h, scores = call(self.router, "router", [x, *(weight for weight in weights if weight is not None)],
                         activation_spec(self.build, (n, c.hidden_size)), ((n, experts), "float32"))
        used = call(self.all_experts if dense else self.union, "union", [scores],
                    ((experts,), "int32"), ((1,), "int32"), ((experts,), "int32"), ((experts, n), "int32"))
        act = call(self.sparse_up, "sparse_up", [h, scores, *used, self.up_proj],
                   activation_spec(self.build, (experts, n, c.expert_size)))
        y = call(self.sparse_down, "sparse_down", [act, *used, self.down_proj, x], ((n, c.hidden_size), "float32"))
        return y, scores
