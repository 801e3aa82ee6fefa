"""The key-value cache: one tensor [slots, kv_heads, width] per layer, written in place.

MLA keeps one head of normed latent | rotated key; grouped-query attention keeps key | value per head.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .norm import normed_row
from .rope import rotate
from .vector import for_lanes, load, over_rows, store


@factory
def append_latent(tiles: CpuTiles, slots: int, latent: int, rope: int, positions: int, eps: float, *, x_width: int,
                  offset: int, dtype: str, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """MLA: cache[past + t, 0] = rms_norm(x[t, offset:][:latent]) * weight | rope(x[t, offset+latent:][:rope]).

    Parameters: cache [slots, 1, latent+rope]; x f32 [n, x_width]; weight ``dtype`` [latent];
    pos int32 [n]; table f32 [positions, rope]; past.
    """
    with kernel(__name__) as k:
        kv = k.tensor((slots, 1, latent + rope), cache_dtype)
        n = k.rows_var()
        x = k.tensor((n, x_width))
        weight = k.tensor((latent,), dtype)
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        past = k.scalar("past")

        def body(row: Any) -> None:
            normed = normed_row(tiles, latent, eps, lambda i, lanes: load(x, row, offset + i, lanes=lanes), weight)
            for_lanes(latent, tiles.lanes,
                      lambda i, lanes: store(kv, normed(i, lanes), past + row, 0, i, lanes=lanes))
            rotate(tiles, rope, table, T.cast(pos[row], "int64"),
                   lambda i, lanes: load(x, row, offset + latent + i, lanes=lanes),
                   lambda value, i, lanes: store(kv, value, past + row, 0, latent + i, lanes=lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func


@factory
def append_heads(tiles: CpuTiles, slots: int, kv_heads: int, head_dim: int, positions: int, *, x_width: int,
                 offset: int, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """Grouped-query attention: cache[past + t, g] = rope(key head g) | value head g of row t.

    Parameters: cache [slots, kv_heads, 2*head_dim]; x f32 [n, x_width] with all keys at ``offset``, all
    values behind them; pos int32 [n]; table f32 [positions, head_dim]; past.
    """
    with kernel(__name__) as k:
        kv = k.tensor((slots, kv_heads, 2 * head_dim), cache_dtype)
        n = k.rows_var()
        x = k.tensor((n, x_width))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, head_dim))
        past = k.scalar("past")

        def body(row: Any) -> None:
            with T.serial(0, kv_heads) as head:
                key = offset + head * head_dim
                rotate(tiles, head_dim, table, T.cast(pos[row], "int64"),
                       lambda i, lanes: load(x, row, key + i, lanes=lanes),
                       lambda value, i, lanes: store(kv, value, past + row, head, i, lanes=lanes))
                for_lanes(head_dim, tiles.lanes, lambda i, lanes: store(
                    kv, load(x, row, key + kv_heads * head_dim + i, lanes=lanes),
                    past + row, head, head_dim + i, lanes=lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func


@factory
def commit(tiles: CpuTiles, slots: int, kv_heads: int, width: int, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """Keep the accepted nodes of a tree: cache[past + i] = cache[past + idx[i]].

    Parameters: cache [slots, kv_heads, width]; idx int32 [m], strictly ascending, hence idx[i] >= i and
    rows can move in place one after the other; past.
    """
    with kernel(__name__) as k:
        kv = k.tensor((slots, kv_heads, width), cache_dtype)
        m = k.rows_var()
        idx = k.tensor((m,), "int32")
        past = k.scalar("past")
        with T.serial(0, m) as row, T.serial(0, kv_heads) as head:
            source = past + T.cast(idx[row], "int64")
            for_lanes(width, tiles.lanes, lambda i, lanes: store(
                kv, load(kv, source, head, i, lanes=lanes), past + row, head, i, lanes=lanes))
    return k.func
