"""Attention over MLC's paged cache of the MHA kind, which keeps heads of keys and of values, all of one width, with the
weights of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm.relax.frontend.nn as nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from schedules.q4 import unpacked

from ..attention import GroupedQueryAttention, LatentAttention
from ..config import LATENT_NORM_EPS
from ..layers import READ, Build, call, matrix_parameter
from .kv_cache import cache_heads


class _PagedAttention(nn.Module):
    """What all of them do; how heads are made, and what becomes of the values, is the subclasses' own."""

    def __init__(self, build: Build, attention: GroupedQueryAttention | LatentAttention, scale: float) -> None:
        self.build, self.attention, self.scale = build, attention, scale
        self.shape, self.dtype = cache_heads(build), build.quantization.cache_dtype

    def qkv(self, x: nn.Tensor, positions: nn.Tensor, rope_table: nn.Tensor) -> nn.Tensor:
        """x: the layer's input, normed -> queries, keys, values of the cache's type [n, heads + 2 * kv_heads, dim]."""
        raise NotImplementedError

    def mixed(self, values: nn.Tensor) -> nn.Tensor:
        """What attention gives, of the cache's type [n, heads, dim] -> values f32 [n, heads * head_dim]."""
        raise NotImplementedError

    def forward(self, x: nn.Tensor, residual: nn.Tensor, positions: nn.Tensor, rope_table: nn.Tensor,
                cache: PagedKVCache, layer: int) -> nn.Tensor:
        n, (heads, _, dim) = x.shape[0], self.shape
        qkv = self.qkv(x, positions, rope_table)
        found = cache.attention_with_fused_qkv(layer, op.reshape(qkv, (1, *qkv.shape)), heads, self.scale)
        values = self.mixed(op.reshape(found, (n, heads, dim)))
        return self.attention.o_proj(self.attention.encode(values), residual)


class PagedHeads(_PagedAttention):
    """Grouped-query attention."""

    def __init__(self, build: Build, attention: GroupedQueryAttention) -> None:
        super().__init__(build, attention, build.config.head_dim**-0.5)
        heads, kv_heads, dim = self.shape
        self.rotate = build.kernels.rope_heads(build.tiles, heads + kv_heads, kv_heads, dim, build.context_window,
                                               self.dtype)
        self.widen = _widen(build)

    def qkv(self, x: nn.Tensor, positions: nn.Tensor, rope_table: nn.Tensor) -> nn.Tensor:
        heads, kv_heads, dim = self.shape
        return call(self.rotate, "rope_heads", [self.attention.qkv_proj(x), positions, rope_table],
                    ((x.shape[0], heads + 2 * kv_heads, dim), self.dtype))

    def mixed(self, values: nn.Tensor) -> nn.Tensor:
        n, heads, _ = values.shape
        shape = n, heads * self.build.config.head_dim
        if self.widen is None:
            return op.reshape(values, shape)
        return call(self.widen, "widen", [values], (shape, "float32"))


class PagedExpanded(PagedHeads):
    """Latent attention as what it stands for: every head has keys of its own, made of the latent, with the one rotated
    key behind them, and values, padded to their width. Keys are made by ``key_up``, a matrix that only this needs."""

    def __init__(self, build: Build, attention: LatentAttention) -> None:
        _PagedAttention.__init__(self, build, attention, build.config.qk_head_dim**-0.5)
        c, kernels, tiles, formats = build.config, build.kernels, build.tiles, build.quantization
        heads, nope, rope, latent, q_width, v = (c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim,
                                                 c.kv_lora_rank, c.q_lora_rank, c.head_dim)
        width = q_width + latent + rope

        def transposed(checkpoint: Any) -> np.ndarray:
            # Their groups of numbers that share a scale lie the other way: in four bits it would be another matrix.
            stored = attention.k_up.attrs[READ](checkpoint)
            return unpacked(stored, formats.weight_format, latent, nope).astype(np.float32).swapaxes(1, 2)

        attention.key_up = matrix_parameter((heads, nope, latent), formats.model_dtype, tiles.output_tile,
                                            "kv_b_proj", transposed)
        self.query = kernels.linear_heads(tiles, heads, q_width, nope + rope, formats.weight_format, build.activations)
        self.norm = kernels.rms_norm(tiles, latent, LATENT_NORM_EPS, formats.model_dtype, x_width=width, offset=q_width)
        self.keys = kernels.linear_heads(tiles, heads, latent, nope, formats.model_dtype)
        self.values = kernels.linear_heads(tiles, heads, latent, v, formats.weight_format)
        self.join = kernels.expanded_heads(tiles, heads, nope, rope, v, build.context_window, x_width=width,
                                           offset=q_width + latent, dtype=self.dtype)
        self.widen = _widen(build)

    def qkv(self, x: nn.Tensor, positions: nn.Tensor, rope_table: nn.Tensor) -> nn.Tensor:
        c, n, own, (heads, _, dim) = self.build.config, x.shape[0], self.attention, self.shape

        def floats(width: int) -> tuple[tuple, str]:
            return (n, width), "float32"

        a = own.qkv_a_proj(x)
        queries = call(self.query, "latent_queries", [own.q_a_layernorm(a), own.q_up], floats(heads * c.qk_head_dim))
        latents = call(self.norm, "kv_a_layernorm", [a, own.kv_a_layernorm_weight], floats(c.kv_lora_rank))
        keys = call(self.keys, "key_up", [latents, own.key_up], floats(heads * c.qk_nope_head_dim))
        values = call(self.values, "value_heads", [latents, own.v_up], floats(heads * c.head_dim))
        return call(self.join, "expanded_heads", [queries, keys, values, a, positions, rope_table],
                    ((n, 3 * heads, dim), self.dtype))


class PagedLatent(_PagedAttention):
    """Latent attention, absorbed: attention with one head of keys, latent | rotated key, whose values are the same
    rows."""

    def __init__(self, build: Build, attention: LatentAttention) -> None:
        super().__init__(build, attention, build.config.qk_head_dim**-0.5)
        c, kernels, tiles, formats = build.config, build.kernels, build.tiles, build.quantization
        heads, _, dim = self.shape
        self.join = kernels.latent_heads(
            tiles, heads, c.kv_lora_rank, c.qk_rope_head_dim, build.context_window, LATENT_NORM_EPS,
            x_width=c.q_lora_rank + dim, offset=c.q_lora_rank, weight_dtype=formats.model_dtype, dtype=self.dtype)
        self.up = kernels.value_up(tiles, heads, c.kv_lora_rank, dim, c.head_dim, formats.weight_format, self.dtype,
                                   build.activations)

    def qkv(self, x: nn.Tensor, positions: nn.Tensor, rope_table: nn.Tensor) -> nn.Tensor:
        n, own, (heads, _, dim) = x.shape[0], self.attention, self.shape
        a = own.qkv_a_proj(x)
        query = call(own.query, "latent_query", [own.q_a_layernorm(a), own.q_up, own.k_up, positions, rope_table],
                     ((n, heads, dim), "float32"))
        return call(self.join, "latent_heads", [query, a, own.kv_a_layernorm_weight, positions, rope_table],
                    ((n, heads + 2, dim), self.dtype))

    def mixed(self, values: nn.Tensor) -> nn.Tensor:
        n, heads, _ = values.shape
        return call(self.up, "value_up", [values, self.attention.v_up],
                    ((n, heads * self.build.config.head_dim), "float32"))


def _widen(build: Build) -> Any:
    """The kernel that gives a head's values as float32 without their padding; None where they are that already."""
    (heads, _, dim), dtype, kept = cache_heads(build), build.quantization.cache_dtype, build.config.head_dim
    if dtype == "float32" and kept == dim:
        return None
    return build.kernels.widen(build.tiles, heads, dim, kept, dtype)
