"""Latent attention over MLC's cache of the MLA kind: one row per token, half of what a cache of the MHA kind takes. It
exists on GPUs only, and MLC's engine cannot verify drafts with it (MLC contract, sections 0 and 1.4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import tvm.relax.frontend.nn as nn
from tvm import relax
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from ..attention import LatentAttention
from ..config import LATENT_NORM_EPS
from ..layers import Build, call
from .kv_cache import cache_heads


class Span(NamedTuple):
    """A cache, and which tokens are attended to: the ``new`` ones (causally), those that are ``cached``, or both.
    ``more``: how many new tokens there are beyond one for each sequence; where there are none, the runtime has the new
    ones in the cache beforehand."""

    cache: PagedKVCache
    new: bool
    cached: bool
    more: Any = 0

    def get_query_positions(self, n: Any) -> nn.Tensor:
        """int32 [n]: of the new tokens."""
        return self.cache.get_query_positions(n)


class PagedLatentRows(nn.Module):
    """Latent attention, absorbed, with the weights of our own."""

    def __init__(self, build: Build, attention: LatentAttention) -> None:
        c, kernels, tiles, self.build, self.attention = build.config, build.kernels, build.tiles, build, attention
        heads, _, dim = cache_heads(build)
        self.dtype = build.quantization.cache_dtype
        self.rows = kernels.latent_rows(
            tiles, heads, c.kv_lora_rank, c.qk_rope_head_dim, build.context_window, LATENT_NORM_EPS,
            x_width=c.q_lora_rank + dim, offset=c.q_lora_rank, weight_dtype=build.quantization.model_dtype,
            dtype=self.dtype)
        self.merge = kernels.merge_latents(heads, c.kv_lora_rank, self.dtype)
        self.up = kernels.value_up(tiles, heads, c.kv_lora_rank, c.kv_lora_rank, c.head_dim,
                                   build.quantization.weight_format, self.dtype, build.activations)

    def forward(self, x: nn.Tensor, residual: nn.Tensor, positions: nn.Tensor, rope_table: nn.Tensor, span: Span,
                layer: int) -> nn.Tensor:
        c, n, own, (heads, _, dim) = self.build.config, x.shape[0], self.attention, cache_heads(self.build)
        a = own.qkv_a_proj(x)
        query = call(own.query, "latent_query", [own.q_a_layernorm(a), own.q_up, own.k_up, positions, rope_table],
                     ((n, heads, dim), "float32"))
        query, rows = call(self.rows, "latent_rows", [query, a, own.kv_a_layernorm_weight, positions, rope_table],
                           ((n, heads, dim), self.dtype), ((n, dim), self.dtype))
        cache = span.cache.append_mla_kv(layer, op.reshape(rows, (1, n, 1, dim)))
        states = []
        if span.new:
            keys = op.reshape(rows, (n, 1, dim))
            states.append(self._attend(cache, "self_attention", layer, query, keys, keys))
        if span.cached:
            states.append(self._attend(cache, "cross_attention", layer, query))
        values, _ = states[0]
        if len(states) == 2:
            values = call(self.merge, "merge_latents", [tensor for state in states for tensor in state] + [span.more],
                          (values.shape, self.dtype))
        values = call(self.up, "value_up", [values, own.v_up], ((n, heads * c.head_dim), "float32"))
        return own.o_proj(own.encode(values), residual)

    def _attend(self, cache: PagedKVCache, name: str, layer: int, query: nn.Tensor,
                *others: nn.Tensor) -> tuple[nn.Tensor, nn.Tensor]:
        """Values ``dtype`` [n, heads, latent] and the logarithms of the softmaxes' sums f32 [n, heads]."""
        c, (n, heads, _), builder = self.build.config, query.shape, relax.BlockBuilder.current()
        found = builder.emit(relax.call_dps_packed(
            f"vm.builtin.attention_kv_cache_{name}",
            [cache._expr, relax.prim_value(layer), relax.prim_value(c.qk_head_dim**-0.5),
             *(tensor._expr for tensor in (query, *others))],
            out_ty=[relax.TensorType((n, heads, c.kv_lora_rank), self.dtype),
                    relax.TensorType((n, heads), "float32")]))
        return tuple(nn.Tensor(_expr=builder.emit(relax.TupleGetItem(found, i))) for i in range(2))
