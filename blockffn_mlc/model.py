"""The whole model as a Relax module, and the functions a library exports (docs/artifact.md)."""

from __future__ import annotations

import tvm.relax.frontend.nn as nn
from tvm import tirx
from tvm.relax.frontend.nn import op, spec

from schedules.rope_table import rope_table

from .attention import Chunk, GroupedQueryAttention, LatentAttention, cache_shape
from .blockffn import BlockFFN
from .eagle import Eagle, attention_build
from .layers import Build, Embedding, Linear, RMSNorm, call, parameter


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
    """BlockFFN for causal language modelling over our own cache tensors, with a draft model if ``build`` has one."""

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
        self.eagle = Eagle(build) if build.draft else None
        self.hidden_norm = build.kernels.rms_norm(build.tiles, c.hidden_size, c.rms_norm_eps,
                                                  build.quantization.model_dtype)
        self.argmax_kernel = None
        if build.on_gpu:  # elsewhere the host looks at logits itself, with kernel ``accept``
            self.argmax_kernel = build.kernels.argmax(build.tiles, c.vocab_size)
        self.commit_kernel = build.kernels.commit(build.tiles, *cache_shape(build), build.quantization.cache_dtype)

    def forward(self, ids: nn.Tensor, positions: nn.Tensor, visible: nn.Tensor, ancestors: nn.Tensor,
                rows: nn.Tensor, past: tirx.Var, caches: list):
        """One pass over n tokens with the sparse FFN; see docs/artifact.md for every argument."""
        chunk = Chunk(positions, visible, ancestors, past, self.rope_table, past)
        return self._run(ids, chunk, rows, caches, dense=False)

    def forward_dense(self, ids: nn.Tensor, positions: nn.Tensor, visible: nn.Tensor, ancestors: nn.Tensor,
                      rows: nn.Tensor, past: tirx.Var, caches: list):
        """``forward`` computing every expert: the twin that sparsity is measured against."""
        chunk = Chunk(positions, visible, ancestors, past, self.rope_table, past)
        return self._run(ids, chunk, rows, caches, dense=True)

    def draft(self, ids: nn.Tensor, hidden: nn.Tensor, positions: nn.Tensor, visible: nn.Tensor, ancestors: nn.Tensor,
              rows: nn.Tensor, past: tirx.Var, offset: tirx.Var, caches: list):
        """One pass of the draft model over n pairs of a token and the state before it."""
        chunk = Chunk(positions, visible, ancestors, past, self.rope_table, past + offset)
        return self.eagle(self.embed_tokens(ids), hidden, chunk, rows, caches)

    def commit(self, idx: nn.Tensor, past: tirx.Var, caches: list):
        """Move the accepted tree nodes' cache rows to past, past+1, ... in every layer."""
        return tuple(op.tensor_ir_inplace_op(self.commit_kernel, "move_rows", [cache, idx, past], 0,
                                             nn.Tensor.placeholder(cache.shape, cache.dtype)) for cache in caches)

    def argmax(self, logits: nn.Tensor):
        """The lowest token with the largest logit of each row, and that logit: greedy decoding on a device."""
        m = logits.shape[0]
        return call(self.argmax_kernel, "argmax", [logits], ((m,), "int32"), ((m,), "float32"))

    def _run(self, ids: nn.Tensor, chunk: Chunk, rows: nn.Tensor, caches: list, dense: bool):
        x, scores = self.embed_tokens(ids), []
        for layer, cache in zip(self.layers, caches):
            x, layer_scores = layer(x, chunk, cache, dense)
            scores.append(layer_scores)
        last = self.norm(x, rows)
        logits = self.lm_head(last) if self.lm_head else self.embed_tokens.logits(last)
        if self.eagle is None:
            return logits, tuple(scores)
        return logits, tuple(scores), call(self.hidden_norm, "hidden", [x, self.norm.weight], (x.shape, "float32"))

    def export_spec(self) -> dict:
        """Argument types of the exported functions, for ``export_tvm``."""
        build, per_token = self.build, spec.Tensor(["n"], "int32")
        caches = _cache_spec(build)
        packed, bare = ({"$": {"param_mode": mode, "effect_mode": "none"}} for mode in ("packed", "none"))
        tokens = {"positions": per_token, "visible": per_token, "ancestors": spec.Tensor(["n", 2], "int32"),
                  "rows": spec.Tensor(["m"], "int32"), "past": int}
        forward = {"ids": per_token} | tokens | {"caches": caches} | packed
        functions = {"forward": forward, "forward_dense": dict(forward),  # TVM takes the "$" out of a dictionary
                     "commit": {"idx": spec.Tensor(["k"], "int32"), "past": int, "caches": caches} | bare}
        if self.argmax_kernel is not None:
            functions["argmax"] = {"logits": spec.Tensor(["m", build.config.vocab_size], "float32")} | bare
        if build.draft:
            hidden = spec.Tensor(["n", build.config.hidden_size], "float32")
            functions["draft"] = {"ids": per_token, "hidden": hidden} | tokens | {
                "offset": int, "caches": _cache_spec(attention_build(build))} | packed
        return functions


def _cache_spec(build: Build) -> list[spec.Tensor]:
    return [spec.Tensor(cache_shape(build), build.quantization.cache_dtype)] * build.config.num_hidden_layers
