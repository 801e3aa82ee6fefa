"""The whole model as a Relax module, and the functions a library exports (docs/artifact.md)."""

from __future__ import annotations

import tvm.relax.frontend.nn as nn
from tvm import tirx
from tvm.relax.frontend.nn import op, spec

from schedules.rope_table import rope_table

from .attention import Chunk, GroupedQueryAttention, LatentAttention, cache_shape
from .blockffn import BlockFFN
from .layers import Build, Embedding, Linear, RMSNorm, parameter


class DecoderLayer(nn.Module):
    """x += c * attention(norm(x)); x += c * ffn(norm(x)). The kernels add the residual themselves."""

    def __init__(self, build: Build, index: int) -> None:
        c, prefix = build.config, f"model.layers.{index}"
        attention = LatentAttention if c.is_mla else GroupedQueryAttention
        self.input_layernorm = RMSNorm(build, f"{prefix}.input_layernorm", c.hidden_size, c.rms_norm_eps)
        self.self_attn = attention(build, f"{prefix}.self_attn")
        self.mlp = BlockFFN(build, f"{prefix}.mlp", norm=f"{prefix}.post_attention_layernorm")

    def forward(self, x: nn.Tensor, chunk: Chunk, cache: nn.Tensor, dense: bool) -> tuple[nn.Tensor, nn.Tensor]:
        x = self.self_attn(self.input_layernorm(x), x, chunk, cache)
        return self.mlp(x, dense)


class Model(nn.Module):
    """BlockFFN for causal language modelling over our own cache tensors."""

    def __init__(self, build: Build) -> None:
        c, self.build = build.config, build
        self.embed_tokens = Embedding(build)
        self.layers = nn.ModuleList([DecoderLayer(build, i) for i in range(c.num_hidden_layers)])
        self.norm = RMSNorm(build, "model.norm", c.hidden_size, c.rms_norm_eps, scale=c.logit_scale, gather=True)
        self.lm_head = None
        if not c.tie_word_embeddings:
            self.lm_head = Linear(build, "lm_head", c.hidden_size, c.vocab_size, ["lm_head"])
        self.rope_table = parameter(
            (build.context_window, c.rope_dim), "float32",
            lambda _: rope_table(build.context_window, c.rope_dim, c.rope_theta, c.rope_scaling_factor))
        self.commit_kernel = build.kernels.commit(build.tiles, *cache_shape(build), build.quantization.cache_dtype)

    def forward(self, ids: nn.Tensor, positions: nn.Tensor, visible: nn.Tensor, ancestors: nn.Tensor,
                rows: nn.Tensor, past: tirx.Var, caches: list):
        """One pass over n tokens with the sparse FFN; see docs/artifact.md for every argument."""
        return self._run(ids, Chunk(positions, visible, ancestors, past, self.rope_table), rows, caches, dense=False)

    def forward_dense(self, ids: nn.Tensor, positions: nn.Tensor, visible: nn.Tensor, ancestors: nn.Tensor,
                      rows: nn.Tensor, past: tirx.Var, caches: list):
        """``forward`` computing every expert: the twin that sparsity is measured against."""
        return self._run(ids, Chunk(positions, visible, ancestors, past, self.rope_table), rows, caches, dense=True)

    def commit(self, idx: nn.Tensor, past: tirx.Var, caches: list):
        """Move the accepted tree nodes' cache rows to past, past+1, ... in every layer."""
        return tuple(op.tensor_ir_inplace_op(self.commit_kernel, "move_rows", [cache, idx, past], 0,
                                             nn.Tensor.placeholder(cache.shape, cache.dtype)) for cache in caches)

    def _run(self, ids: nn.Tensor, chunk: Chunk, rows: nn.Tensor, caches: list, dense: bool):
        x, scores = self.embed_tokens(ids), []
        for layer, cache in zip(self.layers, caches):
            x, layer_scores = layer(x, chunk, cache, dense)
            scores.append(layer_scores)
        hidden = self.norm(x, rows)
        logits = self.lm_head(hidden) if self.lm_head else self.embed_tokens.logits(hidden)
        return logits, tuple(scores)

    def export_spec(self) -> dict:
        """Argument types of the exported functions, for ``export_tvm``."""
        build = self.build
        caches = [spec.Tensor(cache_shape(build), build.quantization.cache_dtype)] * build.config.num_hidden_layers

        def forward() -> dict:
            per_token = {name: spec.Tensor(["n"], "int32") for name in ("ids", "positions", "visible")}
            return per_token | {
                "ancestors": spec.Tensor(["n", 2], "int32"), "rows": spec.Tensor(["m"], "int32"),
                "past": int, "caches": caches, "$": {"param_mode": "packed", "effect_mode": "none"}}

        commit = {"idx": spec.Tensor(["k"], "int32"), "past": int, "caches": caches,
                  "$": {"param_mode": "none", "effect_mode": "none"}}
        return {"forward": forward(), "forward_dense": forward(), "commit": commit}
