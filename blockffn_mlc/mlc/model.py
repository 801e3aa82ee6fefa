"""The functions that MLC's engine calls, over its own paged cache (MLC contract, section 1.2). Embeddings, states and
logits are float32 whatever the format; only what the cache keeps has the cache's type."""

from __future__ import annotations

from functools import partial
from typing import Any

import tvm.relax.frontend.nn as nn
from tvm import relax, tirx
from tvm.relax.frontend.nn import op, spec
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from ..layers import Build, activation_spec, call
from ..model import Model
from .heads import PagedExpanded, PagedHeads, PagedLatent
from .kv_cache import CREATE, create_cache
from .latent import PagedLatentRows, Span
from .metadata import MAX_SEQUENCES
from .sampler import SAMPLING_KINDS, SamplerFunctions, sampler_spec

BOUNDS = {"b": MAX_SEQUENCES}  # of the sizes in these functions' arguments
# What is exported with a cache of either kind only. One of the MLA kind takes no token trees, and a chain is one too.
_NEED_TREES = ("batch_verify", "get_logits", *(f"{name}_to_last_hidden_states" for name in (
    "prefill", "batch_prefill", "decode", "batch_decode", "batch_verify")))
_NEED_LATENTS = ("extend", "batch_extend")
SIZES = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")


# By the kind of MLC's cache, what attends to it: of models with latent attention; of others it is always PagedHeads.
_LATENT_ATTENTION = {"mla": PagedLatentRows, "mqa": PagedLatent, "mha": PagedExpanded}


class ServedModel(SamplerFunctions, Model):
    """The model with the functions of MLC's engine beside our own, over the same weights."""

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        self.cache_build = build
        c, kernels, tiles = build.config, build.kernels, build.tiles
        paged = _LATENT_ATTENTION[build.mlc_cache] if c.is_mla else PagedHeads
        self.paged = [paged(build, layer.self_attn) for layer in self.layers]
        self.row_numbers = kernels.row_numbers()
        self.head_rows = kernels.encode(tiles, c.hidden_size, build.activations, scale=c.logit_scale)
        self.softmax = kernels.softmax_with_temperature(tiles, c.vocab_size)
        self.bias, self.penalty, self.bitmask = (make(c.vocab_size) for make in (
            kernels.apply_logit_bias, kernels.apply_penalty, kernels.apply_bitmask))
        self.gather, self.scatter = (
            {width: make(tiles, width, "float32") for width in (c.hidden_size, c.vocab_size)}
            for make in (kernels.gather_rows, kernels.scatter_rows))

    def embed(self, ids: nn.Tensor):
        return self.embed_tokens(ids)

    def alloc_embedding_tensor(self):
        shape = relax.ShapeExpr([self.build.prefill_chunk, self.build.config.hidden_size])
        return nn.Tensor(_expr=relax.BlockBuilder.current().emit(
            relax.op.builtin.alloc_tensor(shape, "float32", runtime_device_index=0)))

    def prefill(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        seen = self._seen(paged_kv_cache, new=True)
        return self._logits(x, seen, self._rows(x.shape[1] - 1, 1)), paged_kv_cache

    def batch_prefill(self, x: nn.Tensor, logit_positions: nn.Tensor, paged_kv_cache: PagedKVCache):
        return self._logits(x, self._seen(paged_kv_cache, new=True), logit_positions), paged_kv_cache

    def extend(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        n = x.shape[1]
        seen = self._seen(paged_kv_cache, new=True, cached=True, more=n - 1)
        return self._logits(x, seen, self._rows(n - 1, 1)), paged_kv_cache

    def batch_extend(self, x: nn.Tensor, logit_positions: nn.Tensor, paged_kv_cache: PagedKVCache):
        seen = self._seen(paged_kv_cache, new=True, cached=True, more=x.shape[1] - logit_positions.shape[0])
        return self._logits(x, seen, logit_positions), paged_kv_cache

    def decode(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        return self._logits(x, self._seen(paged_kv_cache, cached=True), self._rows(0, 1)), paged_kv_cache

    def batch_decode(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        b = x.shape[0]
        logits = self._logits(x, self._seen(paged_kv_cache, cached=True), self._rows(0, b))
        return op.reshape(logits, (b, 1, self.build.config.vocab_size)), paged_kv_cache

    def batch_verify(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        return self._logits(x, paged_kv_cache, self._rows(0, x.shape[1])), paged_kv_cache

    def to_last_hidden_states(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        """What is one computation for MLC's prefill, decode and verification: the states after the final norm."""
        states = self._run_paged(x, paged_kv_cache)
        hidden = call(self.hidden_norm, "hidden", [states, self.norm.weight], (states.shape, "float32"))
        return op.reshape(hidden, x.shape), paged_kv_cache

    prefill_to_last_hidden_states = batch_prefill_to_last_hidden_states = to_last_hidden_states
    decode_to_last_hidden_states = batch_decode_to_last_hidden_states = to_last_hidden_states
    batch_verify_to_last_hidden_states = to_last_hidden_states

    def get_logits(self, hidden: nn.Tensor):
        rows = call(self.head_rows, "head_rows", [hidden], activation_spec(self.build, hidden.shape))
        return self.lm_head(rows) if self.lm_head else self.embed_tokens.logits(rows)

    def softmax_with_temperature(self, logits: nn.Tensor, temperature: nn.Tensor):
        return call(self.softmax, "softmax_with_temperature", [logits, temperature], (logits.shape, "float32"))

    def apply_logit_bias_inplace(self, logits: nn.Tensor, pos2seq_id: nn.Tensor, token_ids: nn.Tensor,
                                 logit_bias: nn.Tensor):
        return _in_place(self.bias, "apply_logit_bias", logits, pos2seq_id, token_ids, logit_bias)

    def apply_penalty_inplace(self, logits: nn.Tensor, seq_ids: nn.Tensor, pos2seq_id: nn.Tensor,
                              token_ids: nn.Tensor, token_cnt: nn.Tensor, penalties: nn.Tensor):
        return _in_place(self.penalty, "apply_penalty", logits, seq_ids, pos2seq_id, token_ids, token_cnt, penalties)

    def apply_bitmask_inplace(self, logits: nn.Tensor, seq_ids: nn.Tensor, bitmask: nn.Tensor):
        return _in_place(self.bitmask, "apply_bitmask", logits, seq_ids, bitmask)

    def gather_probs(self, source: nn.Tensor, indices: nn.Tensor, target: nn.Tensor):
        return _in_place(self.gather[source.shape[1]], "gather_rows", target, source, indices)

    def scatter_probs(self, source: nn.Tensor, indices: nn.Tensor, target: nn.Tensor):
        return _in_place(self.scatter[source.shape[1]], "scatter_rows", target, source, indices)

    gather_hidden_states, scatter_hidden_states = gather_probs, scatter_probs

    def create_tir_paged_kv_cache(self, max_batch_size: tirx.Var, max_total_seq_len: tirx.Var,
                                  prefill_chunk_size: tirx.Var, page_size: tirx.Var,
                                  support_sliding_window: tirx.Var):
        return create_cache(self.cache_build, [max_batch_size, max_total_seq_len, prefill_chunk_size, page_size,
                                               support_sliding_window])

    def _seen(self, cache: PagedKVCache, *, new: bool = False, cached: bool = False, more: Any = 0) -> Any:
        """What attention takes; a cache of the MHA kind knows by itself which tokens are seen."""
        return Span(cache, new, cached, more) if self.build.latent_cache else cache

    def _rows(self, first: Any, count: Any) -> nn.Tensor:
        first = tirx.IntImm("int64", first) if isinstance(first, int) else first
        return call(self.row_numbers, "row_numbers", [first], ((count,), "int32"))

    def _logits(self, x: nn.Tensor, cache: PagedKVCache | Span, rows: nn.Tensor) -> nn.Tensor:
        """x f32 [1, n, H] or [n, 1, H] -> logits f32 [1, m, V] of ``rows`` int32 [m]."""
        last = self.norm(self._run_paged(x, cache), rows)
        logits = self.lm_head(last) if self.lm_head else self.embed_tokens.logits(last)
        return op.reshape(logits, (1, *logits.shape))

    def _run_paged(self, x: nn.Tensor, cache: PagedKVCache | Span) -> nn.Tensor:
        """x f32 [1, n, H] or [n, 1, H] -> the last layer's output f32 [n, H]."""
        n = x.shape[0] * x.shape[1]
        x = op.reshape(x, (n, x.shape[2]))
        positions = cache.get_query_positions(n)
        for index, (layer, paged) in enumerate(zip(self.layers, self.paged)):
            x = paged(layer.input_layernorm(x), x, positions, self.rope_table, cache, index)
            x, _ = layer.mlp(x, dense=False)
        return x

    def export_spec(self) -> dict:
        """Ours, and MLC's."""
        c = self.build.config
        sampler = sampler_spec(c.vocab_size) if self.build.mlc.kind.name in SAMPLING_KINDS else {}
        functions = mlc_spec(c.hidden_size, c.vocab_size, latent=self.build.latent_cache)
        return super().export_spec() | functions | _with_mode("none", sampler)


def model_spec(hidden: int, *, latent: bool = False) -> dict:
    """Argument types of MLC's functions that take weights (MLC contract, section 1.2), over a cache of the MLA kind if
    it is ``latent``."""
    functions: dict[str, dict] = {"embed": {"ids": spec.Tensor(["n"], "int32")}}
    cache = {"paged_kv_cache": spec.Object(object_type=PagedKVCache)}
    chunk, one, batch = ({"x": spec.Tensor([*shape, hidden], "float32")} for shape in ((1, "n"), (1, 1), ("b", 1)))
    functions |= {
        **{name: chunk | cache for name in ("prefill", "extend")},
        **{name: chunk | {"logit_positions": spec.Tensor(["b"], "int32")} | cache
           for name in ("batch_prefill", "batch_extend")},
        "decode": one | cache, "batch_decode": batch | cache, "batch_verify": chunk | cache,
        **{f"{name}_to_last_hidden_states": x | cache for name, x in (
            ("prefill", chunk), ("batch_prefill", chunk), ("decode", one), ("batch_decode", batch),
            ("batch_verify", chunk))},
        "get_logits": {"hidden": spec.Tensor(["n", hidden], "float32")},
    }
    absent = _NEED_TREES if latent else _NEED_LATENTS
    return _with_mode("packed", {name: types for name, types in functions.items() if name not in absent})


def mlc_spec(hidden: int, vocab: int, *, latent: bool = False) -> dict:
    """Argument types of MLC's functions (MLC contract, section 1.2); ``latent`` as for ``model_spec``."""
    ints, floats = (partial(_vector, dtype=dtype) for dtype in ("int32", "float32"))
    rows = {"logits": spec.Tensor(["b", vocab], "float32")}
    bare: dict[str, dict] = {
        "alloc_embedding_tensor": {},
        "softmax_with_temperature": {"logits": spec.Tensor(["b", 1, vocab], "float32"), "temperature": floats("b")},
        "apply_logit_bias_inplace": rows | {"pos2seq_id": ints("k"), "token_ids": ints("k"), "logit_bias": floats("k")},
        "apply_penalty_inplace": rows | {"seq_ids": ints("s"), "pos2seq_id": ints("k"), "token_ids": ints("k"),
                                         "token_cnt": ints("k"), "penalties": floats("s", 3)},
        "apply_bitmask_inplace": rows | {"seq_ids": ints("s"), "bitmask": ints("b", -(-vocab // 32))},
        CREATE: dict.fromkeys(SIZES, int),
    }
    for what, width in (("probs", vocab), ("hidden_states", hidden)):
        bare[f"gather_{what}"] = {"source": floats("m", width), "indices": ints("k"), "target": floats("k", width)}
        bare[f"scatter_{what}"] = {"source": floats("k", width), "indices": ints("k"), "target": floats("m", width)}
    return model_spec(hidden, latent=latent) | _with_mode("none", bare)


def _with_mode(mode: str, functions: dict[str, dict]) -> dict:
    return {name: arguments | {"$": {"param_mode": mode, "effect_mode": "none"}}
            for name, arguments in functions.items()}


def _vector(*shape: str | int, dtype: str) -> spec.Tensor:
    return spec.Tensor(list(shape), dtype)


def _in_place(kernel: Any, name: str, written: nn.Tensor, *others: nn.Tensor) -> nn.Tensor:
    return op.tensor_ir_inplace_op(kernel, name, [written, *others], 0,
                                   nn.Tensor.placeholder(written.shape, written.dtype))
