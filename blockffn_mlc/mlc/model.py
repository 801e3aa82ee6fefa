"""The functions that MLC's engine calls, over its own paged cache (MLC contract, section 1.2). Embeddings, states and
logits are float32 whatever the format; only what the cache keeps has the cache's type."""

from __future__ import annotations

from typing import Any

import tvm.relax.frontend.nn as nn
from tvm import tirx
from tvm.relax.frontend.nn import op, spec
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from ..attention import GroupedQueryAttention
from ..layers import Build, call
from ..model import Model
from ..target import Target
from .kv_cache import CREATE, create_cache

_SIZES = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")


class PagedAttention(nn.Module):
    """Grouped-query attention over the paged cache, with the weights of our own."""

    def __init__(self, build: Build, attention: GroupedQueryAttention) -> None:
        c, self.build, self.attention = build.config, build, attention
        heads, kv_heads, dim, dtype = c.num_attention_heads, c.num_key_value_heads, c.head_dim, \
            build.quantization.cache_dtype
        self.rotate = build.kernels.rope_heads(build.tiles, heads + kv_heads, kv_heads, dim, build.context_window,
                                               dtype)
        self.widen = None if dtype == "float32" else build.kernels.widen(build.tiles, heads * dim, dtype)

    def forward(self, x: nn.Tensor, residual: nn.Tensor, positions: nn.Tensor, rope_table: nn.Tensor,
                cache: PagedKVCache, layer: int) -> nn.Tensor:
        c, n = self.build.config, x.shape[0]
        heads, kv_heads, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        qkv = call(self.rotate, "rope_heads", [self.attention.qkv_proj(x), positions, rope_table],
                   ((n, heads + 2 * kv_heads, dim), self.build.quantization.cache_dtype))
        values = cache.attention_with_fused_qkv(layer, op.reshape(qkv, (1, *qkv.shape)), heads, dim**-0.5)
        values = op.reshape(values, (n, heads * dim))
        if self.widen is not None:
            values = call(self.widen, "widen", [values], ((n, heads * dim), "float32"))
        return self.attention.o_proj(self.attention.encode(values), residual)


class ServedModel(Model):
    """The model with the functions of MLC's engine beside our own, over the same weights."""

    def __init__(self, build: Build, target: Target) -> None:
        super().__init__(build)
        c, kernels, tiles, self.target = build.config, build.kernels, build.tiles, target
        self.paged = [PagedAttention(build, layer.self_attn) for layer in self.layers]
        self.row_numbers = kernels.row_numbers()
        self.softmax = kernels.softmax_with_temperature(tiles, c.vocab_size)
        self.bias, self.penalty, self.bitmask = (make(c.vocab_size) for make in (
            kernels.apply_logit_bias, kernels.apply_penalty, kernels.apply_bitmask))

    def embed(self, ids: nn.Tensor) -> nn.Tensor:
        return self.embed_tokens(ids)

    def prefill(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        n = x.shape[1]
        return self._logits(x, paged_kv_cache, self._rows(n - 1, 1))

    def batch_prefill(self, x: nn.Tensor, logit_positions: nn.Tensor, paged_kv_cache: PagedKVCache):
        return self._logits(x, paged_kv_cache, logit_positions)

    def decode(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        return self._logits(x, paged_kv_cache, self._rows(0, 1))

    def batch_decode(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        b = x.shape[0]
        logits, cache = self._logits(x, paged_kv_cache, self._rows(0, b))
        return op.reshape(logits, (b, 1, self.build.config.vocab_size)), cache

    def batch_verify(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        return self._logits(x, paged_kv_cache, self._rows(0, x.shape[1]))

    def softmax_with_temperature(self, logits: nn.Tensor, temperature: nn.Tensor) -> nn.Tensor:
        return call(self.softmax, "softmax_with_temperature", [logits, temperature], (logits.shape, "float32"))

    def create_tir_paged_kv_cache(self, max_batch_size: tirx.Var, max_total_seq_len: tirx.Var,
                                  prefill_chunk_size: tirx.Var, page_size: tirx.Var,
                                  support_sliding_window: tirx.Var) -> PagedKVCache:
        return create_cache(self.build, self.target.tvm_target, [
            max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window])

    def _rows(self, first: Any, count: Any) -> nn.Tensor:
        return op.tensor_ir_op(self.row_numbers, "row_numbers", [tirx.IntImm("int64", first) if isinstance(first, int) else first],
                               nn.Tensor.placeholder((count,), "int32"))

    def _logits(self, x: nn.Tensor, cache: PagedKVCache, rows: nn.Tensor):
        """x f32 [1, n, H] or [n, 1, H] -> logits f32 [1, m, V] of ``rows`` int32 [m]."""
        n = x.shape[0] * x.shape[1]
        x = op.reshape(x, (n, self.build.config.hidden_size))
        positions = cache.get_query_positions(n)
        for index, (layer, paged) in enumerate(zip(self.layers, self.paged)):
            x = paged(layer.input_layernorm(x), x, positions, self.rope_table, cache, index)
            x, _ = layer.mlp(x, dense=False)
        last = self.norm(x, rows)
        logits = self.lm_head(last) if self.lm_head else self.embed_tokens.logits(last)
        return op.reshape(logits, (1, rows.shape[0], self.build.config.vocab_size)), cache

    def export_spec(self) -> dict:
        """Ours, and MLC's."""
        h, vocab = self.build.config.hidden_size, self.build.config.vocab_size
        cache = spec.Object(object_type=PagedKVCache)
        packed, bare = ({"$": {"param_mode": mode, "effect_mode": "none"}} for mode in ("packed", "none"))
        def rows(*shape): return {"x": spec.Tensor([*shape, h], "float32")}
        return super().export_spec() | {
            "embed": {"ids": spec.Tensor(["n"], "int32")} | packed,
            "prefill": rows(1, "n") | {"paged_kv_cache": cache} | packed,
            "batch_prefill": rows(1, "n") | {"logit_positions": spec.Tensor(["b"], "int32"),
                                            "paged_kv_cache": cache} | packed,
            "decode": rows(1, 1) | {"paged_kv_cache": cache} | packed,
            "batch_decode": rows("b", 1) | {"paged_kv_cache": cache} | packed,
            "batch_verify": rows(1, "n") | {"paged_kv_cache": cache} | packed,
            "softmax_with_temperature": {"logits": spec.Tensor(["b", 1, vocab], "float32"),
                                         "temperature": spec.Tensor(["b"], "float32")} | bare,
            CREATE: dict.fromkeys(_SIZES, int) | bare,
        }
