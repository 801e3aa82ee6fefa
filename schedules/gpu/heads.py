"""Queries, keys and values as MLC's paged cache of the MHA kind takes them, heads behind one another in one tensor, and
what becomes of the values that it gives back (MLC contract, section 1.4)."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import barrier, float32, kernel, launch, shared, strided
from .latent_query import project
from .matrix import LANES, Row, matrix
from .norm import norm_factor
from .product import Product, Variant
from .rope import rotate


@factory
def rope_heads(tiles: GpuTiles, rotated: int, kept: int, dim: int, positions: int, dtype: str) -> tvm.tirx.PrimFunc:
    """The first ``rotated`` heads rotated, the ``kept`` ones behind them as they are; parameters as the CPU kernel's. A
    work-group takes a head of a token."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, (rotated + kept) * dim))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, dim))
        y = k.tensor((n, rotated + kept, dim), dtype)

        with launch((rotated + kept, n), (LANES,)) as ((head, row), (item,)):
            def write(value: Any, i: Any) -> None:
                T.buffer_store(y, T.cast(value, dtype), [row, head, i])

            with when(head < rotated):
                rotate(item, LANES, dim, table, T.bind(pos[row]), lambda i: x[row, head * dim + i], write)
            with when(head >= rotated):
                strided(item, dim, LANES, lambda i: write(x[row, head * dim + i], i))
    return k.func


@factory
def latent_heads(tiles: GpuTiles, heads: int, latent: int, rope: int, positions: int, eps: float, *, x_width: int,
                 offset: int, weight_dtype: str, dtype: str) -> tvm.tirx.PrimFunc:
    """MLA as attention with one head of keys; parameters as the CPU kernel's. A work-group takes a token."""
    with kernel(__name__) as k:
        n = k.rows_var()
        q = k.tensor((n, heads, latent + rope))
        x = k.tensor((n, x_width))
        weight = k.tensor((latent,), weight_dtype)
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        y = k.tensor((n, heads + 2, latent + rope), dtype)

        with launch((n,), (tiles.items,)) as ((row,), (item,)):
            def write(head: Any, value: Any, i: Any) -> None:
                T.buffer_store(y, T.cast(value, dtype), [row, head, i])

            def both(value: Any, i: Any) -> None:
                value = T.bind(value)
                for head in (heads, heads + 1):
                    write(head, value, i)

            factor = norm_factor(tiles, item, latent, eps, lambda i: x[row, offset + i])
            with T.serial(0, heads) as head:
                strided(item, latent + rope, tiles.items, lambda i: write(head, q[row, head, i], i))
            strided(item, latent, tiles.items, lambda i: both(x[row, offset + i] * factor * float32(weight[i]), i))
            rotate(item, tiles.items, rope, table, T.bind(pos[row]), lambda i: x[row, offset + latent + i],
                   lambda value, i: both(value, latent + i))
    return k.func


@factory
def expanded_heads(tiles: GpuTiles, heads: int, nope: int, rope: int, v_dim: int, positions: int, *, x_width: int,
                   offset: int, dtype: str) -> tvm.tirx.PrimFunc:
    """MLA as attention with as many heads of keys and values; parameters as the CPU kernel's. A work-group takes a head
    of a token."""
    with kernel(__name__) as k:
        n, key_dim = k.rows_var(), nope + rope
        dim = max(key_dim, v_dim)
        q, keys, values = (k.tensor((n, heads * width)) for width in (key_dim, nope, v_dim))
        x = k.tensor((n, x_width))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        y = k.tensor((n, 3 * heads, dim), dtype)

        with launch((heads, 3, n), (LANES,)) as ((head, part, row), (item,)):
            def write(value: Any, i: Any) -> None:
                T.buffer_store(y, T.cast(value, dtype), [row, part * heads + head, i])

            def fill(source: T.Buffer, first: Any, count: int, used: int) -> None:
                """Columns of ``source`` as the first ``count`` of a head that uses so many."""
                strided(item, count, LANES, lambda i: write(source[row, first + i], i))
                strided(item, dim - used, LANES, lambda i: write(T.float32(0), used + i))

            def turn(source: T.Buffer, first: Any) -> None:
                rotate(item, LANES, rope, table, T.bind(pos[row]), lambda i: source[row, first + i],
                       lambda value, i: write(value, nope + i))

            with when(part == 0):
                fill(q, head * key_dim, nope, key_dim)
                turn(q, head * key_dim + nope)
            with when(part == 1):
                fill(keys, head * nope, nope, key_dim)
                turn(x, offset)
            with when(part == 2):
                fill(values, head * v_dim, v_dim, v_dim)
    return k.func


@factory
def value_up(tiles: GpuTiles, heads: int, latent: int, width: int, v_dim: int, weight_format: str, dtype: str,
             activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h] = v_up[h] x[t, h, :latent]; parameters as the CPU kernel's. A work-group takes a head of a token."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, heads, width), dtype)
        v_up = matrix(k, tiles, weight_format, (heads, v_dim, latent))
        y = k.tensor((n, heads * v_dim))

        with launch((heads, n), (LANES, tiles.slices)) as ((head, row), (lane, part)):
            product, own = Product(tiles, Variant(1), v_up, lane, part), shared((1, latent))
            strided(T.bind(part * LANES + lane), latent, tiles.items,
                    lambda i: T.buffer_store(own, float32(x[row, head, i]), [0, i]))
            barrier()
            project(product, v_up, (head,), [Row(own, (0,))], lane,
                    lambda t, value, i: T.buffer_store(y, value, [row, head * v_dim + i]))
    return k.func


@factory
def widen(tiles: GpuTiles, heads: int, width: int, kept: int, dtype: str) -> tvm.tirx.PrimFunc:
    """y[t, h] = x[t, h, :kept] as float32; parameters as the CPU kernel's."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, heads, width), dtype)
        y = k.tensor((n, heads * kept))
        with launch((n,), (tiles.items,)) as ((row,), (item,)):
            strided(item, heads * kept, tiles.items, lambda i: T.buffer_store(
                y, float32(x[row, T.truncdiv(i, kept), T.truncmod(i, kept)]), [row, i]))
    return k.func
