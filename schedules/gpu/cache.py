"""The key-value cache: one tensor [slots, kv_heads, width] per layer, written in place.

MLA keeps one head of normed latent | rotated key; grouped-query attention keeps key | value per head.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import ceil_div, float32, kernel, launch, strided
from .norm import norm_factor
from .rope import rotate


@factory
def append_latent(tiles: GpuTiles, slots: int, latent: int, rope: int, positions: int, eps: float, *, x_width: int,
                  offset: int, dtype: str, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """MLA: cache[past + t, 0] = rms_norm(x[t, offset:][:latent]) * weight | rope(x[t, offset+latent:][:rope]);
    parameters as the CPU kernel's. A work-group takes a token."""
    with kernel(__name__) as k:
        kv = k.tensor((slots, 1, latent + rope), cache_dtype)
        n = k.rows_var()
        x = k.tensor((n, x_width))
        weight = k.tensor((latent,), dtype)
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        past = k.scalar("past")

        with launch((n,), (tiles.items,)) as ((row,), (item,)):
            def write(value: Any, i: Any) -> None:
                T.buffer_store(kv, T.cast(value, cache_dtype), [past + row, 0, i])

            factor = norm_factor(tiles, item, latent, eps, lambda i: x[row, offset + i])
            strided(item, latent, tiles.items,
                    lambda i: write(x[row, offset + i] * factor * float32(weight[i]), i))
            rotate(item, tiles.items, rope, table, T.bind(pos[row]), lambda i: x[row, offset + latent + i],
                   lambda value, i: write(value, latent + i))
    return k.func


@factory
def append_heads(tiles: GpuTiles, slots: int, kv_heads: int, head_dim: int, positions: int, *, x_width: int,
                 offset: int, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """Grouped-query attention: cache[past + t, g] = rope(key head g) | value head g of row t; parameters as the CPU
    kernel's. A work-group takes a head of a token."""
    with kernel(__name__) as k:
        kv = k.tensor((slots, kv_heads, 2 * head_dim), cache_dtype)
        n = k.rows_var()
        x = k.tensor((n, x_width))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, head_dim))
        past = k.scalar("past")

        with launch((kv_heads, n), (tiles.output_tile,)) as ((head, row), (item,)):
            def write(value: Any, i: Any) -> None:
                T.buffer_store(kv, T.cast(value, cache_dtype), [past + row, head, i])

            key = T.bind(offset + head * head_dim)
            rotate(item, tiles.output_tile, head_dim, table, T.bind(pos[row]), lambda i: x[row, key + i], write)
            strided(item, head_dim, tiles.output_tile,
                    lambda i: write(x[row, key + kv_heads * head_dim + i], head_dim + i))
    return k.func


@factory
def commit(tiles: GpuTiles, slots: int, kv_heads: int, width: int, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """Keep the accepted nodes of a tree: cache[past + i] = cache[past + idx[i]]; parameters as the CPU kernel's.

    idx ascends strictly, so idx[i] >= i: a work-item moves one column's elements, one row after the other.
    """
    with kernel(__name__) as k:
        kv = k.tensor((slots, kv_heads, width), cache_dtype)
        m = k.rows_var()
        idx = k.tensor((m,), "int32")
        past = k.scalar("past")

        with launch((ceil_div(width, tiles.output_tile), kv_heads), (tiles.output_tile,)) as ((block, head), (item,)):
            i = T.bind(block * tiles.output_tile + item)
            with when(i < width), T.serial(0, m) as row:
                T.buffer_store(kv, kv[past + idx[row], head, i], [past + row, head, i])
    return k.func
