"""Both attention kinds over our own cache: absorbed MLA and grouped-query attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tvm.relax.frontend.nn as nn
from tvm.relax.frontend.nn import op

from schedules.tiles import MAX_TREE_NODES

from .config import LATENT_NORM_EPS
from .layers import Build, Encode, Linear, RMSNorm, call, matrix_parameter, vector_parameter


class Chunk(NamedTuple):
    """What every attention layer is told about the tokens of a pass (docs/artifact.md)."""

    positions: nn.Tensor
    visible: nn.Tensor
    ancestors: nn.Tensor
    past: Any
    rope_table: nn.Tensor
    slot: Any
    """Where the first token's keys and values are written: ``past``, but for a draft's further levels"""


def cache_shape(build: Build) -> tuple[int, int, int]:
    """[slots, kv_heads, width] of one layer's cache: the context window, and room for a tree at its end."""
    config, slots = build.config, build.context_window + MAX_TREE_NODES
    if config.is_mla:
        return slots, 1, config.kv_lora_rank + config.qk_rope_head_dim
    return slots, config.num_key_value_heads, 2 * config.head_dim


class LatentAttention(nn.Module):
    """Multi-head latent attention with the up projections absorbed: scores against the cached latent,
    values from it, so that a token costs kv_lora_rank + qk_rope_head_dim numbers of cache."""

    def __init__(self, build: Build, prefix: str) -> None:
        c, self.build = build.config, build
        heads, nope, rope, latent, v = (c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim,
                                        c.kv_lora_rank, c.head_dim)
        width = c.q_lora_rank + latent + rope
        kernels, tiles, formats = build.kernels, build.tiles, build.quantization
        slots, kv_heads, cache_width = cache_shape(build)

        def kv_b(checkpoint: Any) -> np.ndarray:
            return checkpoint.read(f"{prefix}.kv_b_proj.weight").reshape(heads, nope + v, latent)

        self.qkv_a_proj = Linear(build, "qkv_a_proj", c.hidden_size, width,
                                 [f"{prefix}.q_a_proj", f"{prefix}.kv_a_proj_with_mqa"], bias=c.attention_bias)
        self.q_a_layernorm = RMSNorm(build, f"{prefix}.q_a_layernorm", c.q_lora_rank, LATENT_NORM_EPS, x_width=width)
        self.kv_a_layernorm_weight = vector_parameter(build, [f"{prefix}.kv_a_layernorm.weight"], latent)
        q_b, kv_up = f"{prefix}.q_b_proj.weight", f"{prefix}.kv_b_proj.weight"
        self.q_up, self.k_up, self.v_up = (
            matrix_parameter((heads, outputs, inputs), formats.weight_format, tiles.output_tile, name, read)
            for outputs, inputs, name, read in (
                (nope + rope, c.q_lora_rank, q_b, lambda ckpt: ckpt.read(q_b).reshape(heads, nope + rope, -1)),
                (latent, nope, kv_up, lambda ckpt: kv_b(ckpt)[:, :nope].swapaxes(1, 2)),
                (v, latent, kv_up, lambda ckpt: kv_b(ckpt)[:, nope:])))
        self.encode = Encode(build, heads * v)
        self.o_proj = Linear(build, "o_proj", heads * v, c.hidden_size, [f"{prefix}.o_proj"], bias=c.attention_bias,
                             residual_scale=c.residual_scale)
        self.append = kernels.append_latent(
            tiles, slots, latent, rope, build.context_window, LATENT_NORM_EPS, x_width=width, offset=c.q_lora_rank,
            dtype=formats.model_dtype, cache_dtype=formats.cache_dtype)
        self.query = kernels.latent_query(tiles, heads, c.q_lora_rank, nope, rope, latent, build.context_window,
                                          formats.weight_format, build.activations)
        self.attend = kernels.attention(
            tiles, heads, kv_heads, slots, key_dim=latent + rope, value_offset=0, value_dim=latent,
            width=cache_width, scale=c.qk_head_dim**-0.5, cache_dtype=formats.cache_dtype, v_dim=v,
            weight_format=formats.weight_format, activations=build.activations)

    def forward(self, x: nn.Tensor, residual: nn.Tensor, chunk: Chunk, cache: nn.Tensor) -> nn.Tensor:
        c, n = self.build.config, x.shape[0]
        heads, key_dim = c.num_attention_heads, c.kv_lora_rank + c.qk_rope_head_dim
        a = self.qkv_a_proj(x)
        cache = op.tensor_ir_inplace_op(
            self.append, "append_latent",
            [cache, a, self.kv_a_layernorm_weight, chunk.positions, chunk.rope_table, chunk.slot], 0,
            nn.Tensor.placeholder(cache.shape, cache.dtype))
        query = call(self.query, "latent_query",
                     [self.q_a_layernorm(a), self.q_up, self.k_up, chunk.positions, chunk.rope_table],
                     ((n, heads, key_dim), "float32"))
        values = call(self.attend, "attention", [query, cache, chunk.visible, chunk.ancestors, chunk.past, self.v_up],
                      ((n, heads * c.head_dim), "float32"))
        return self.o_proj(self.encode(values), residual)


class GroupedQueryAttention(nn.Module):
    """Plain attention with fewer key-value heads than query heads; the whole head is rotated."""

    def __init__(self, build: Build, prefix: str) -> None:
        c, self.build = build.config, build
        heads, kv_heads, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        width = (heads + 2 * kv_heads) * dim
        kernels, tiles, cache_dtype = build.kernels, build.tiles, build.quantization.cache_dtype
        slots, _, cache_width = cache_shape(build)
        self.qkv_proj = Linear(build, "qkv_proj", c.hidden_size, width, [f"{prefix}.{p}_proj" for p in "qkv"],
                               bias=c.attention_bias)
        self.o_proj = Linear(build, "o_proj", heads * dim, c.hidden_size, [f"{prefix}.o_proj"], bias=c.attention_bias,
                             residual_scale=c.residual_scale)
        self.append = kernels.append_heads(tiles, slots, kv_heads, dim, build.context_window, x_width=width,
                                           offset=heads * dim, cache_dtype=cache_dtype)
        self.rope_query = kernels.rope_query(tiles, heads, dim, build.context_window, x_width=width)
        self.encode = Encode(build, heads * dim)
        self.attend = kernels.attention(tiles, heads, kv_heads, slots, key_dim=dim, value_offset=dim, value_dim=dim,
                                        width=cache_width, scale=dim**-0.5, cache_dtype=cache_dtype)

    def forward(self, x: nn.Tensor, residual: nn.Tensor, chunk: Chunk, cache: nn.Tensor) -> nn.Tensor:
        c, n = self.build.config, x.shape[0]
        heads, dim = c.num_attention_heads, c.head_dim
        qkv = self.qkv_proj(x)
        cache = op.tensor_ir_inplace_op(
            self.append, "append_heads", [cache, qkv, chunk.positions, chunk.rope_table, chunk.slot], 0,
            nn.Tensor.placeholder(cache.shape, cache.dtype))
        query = call(self.rope_query, "rope_query", [qkv, chunk.positions, chunk.rope_table],
                     ((n, heads, dim), "float32"))
        values = call(self.attend, "attention", [query, cache, chunk.visible, chunk.ancestors, chunk.past],
                      ((n, heads * dim), "float32"))
        return self.o_proj(self.encode(values), residual)
