"""Queries, keys and values as MLC's paged cache of the MHA kind takes them, heads behind one another in one tensor, and
what becomes of the values that it gives back (MLC contract, section 1.4)."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .matrix import matrix
from .norm import normed_row
from .rope import rotate
from .rows import FloatRows, encoded
from .vector import Register, for_lanes, load, over_rows, over_token_tiles, splat, store


@factory
def rope_heads(tiles: CpuTiles, rotated: int, kept: int, dim: int, positions: int, dtype: str) -> tvm.tirx.PrimFunc:
    """The first ``rotated`` heads rotated, the ``kept`` ones behind them as they are.

    Parameters: x f32 [n, (rotated + kept) * dim]; pos int32 [n]; table f32 [positions, dim] (cos, then sin);
    y ``dtype`` [n, rotated + kept, dim].
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, (rotated + kept) * dim))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, dim))
        y = k.tensor((n, rotated + kept, dim), dtype)

        def body(row: Any) -> None:
            with T.serial(0, rotated) as head:
                rotate(tiles, dim, table, T.cast(pos[row], "int64"),
                       lambda i, lanes: load(x, row, head * dim + i, lanes=lanes),
                       lambda value, i, lanes: store(y, value, row, head, i, lanes=lanes))
            with T.serial(rotated, rotated + kept) as head:
                for_lanes(dim, tiles.lanes, lambda i, lanes: store(
                    y, load(x, row, head * dim + i, lanes=lanes), row, head, i, lanes=lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func


@factory
def latent_heads(tiles: CpuTiles, heads: int, latent: int, rope: int, positions: int, eps: float, *, x_width: int,
                 offset: int, weight_dtype: str, dtype: str) -> tvm.tirx.PrimFunc:
    """MLA as attention with one head of keys: queries, then the key rms_norm(x[t, offset:][:latent]) * weight |
    rope(x[t, offset + latent:][:rope]), then the same as the value, of which the first ``latent`` columns count.

    Parameters: q f32 [n, heads, latent + rope]; x f32 [n, x_width]; weight ``weight_dtype`` [latent]; pos int32 [n];
    table f32 [positions, rope] (cos, then sin); y ``dtype`` [n, heads + 2, latent + rope].
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        q = k.tensor((n, heads, latent + rope))
        x = k.tensor((n, x_width))
        weight = k.tensor((latent,), weight_dtype)
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        y = k.tensor((n, heads + 2, latent + rope), dtype)

        def body(row: Any) -> None:
            with T.serial(0, heads) as head:
                for_lanes(latent + rope, tiles.lanes, lambda i, lanes: store(
                    y, load(q, row, head, i, lanes=lanes), row, head, i, lanes=lanes))

            def both(value: Any, i: Any, lanes: int) -> None:
                held = Register(lanes, value).get()
                for head in (heads, heads + 1):
                    store(y, held, row, head, i, lanes=lanes)

            normed = normed_row(tiles, latent, eps, lambda i, lanes: load(x, row, offset + i, lanes=lanes), weight)
            for_lanes(latent, tiles.lanes, lambda i, lanes: both(normed(i, lanes), i, lanes))
            rotate(tiles, rope, table, T.cast(pos[row], "int64"),
                   lambda i, lanes: load(x, row, offset + latent + i, lanes=lanes),
                   lambda value, i, lanes: both(value, latent + i, lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func


@factory
def expanded_heads(tiles: CpuTiles, heads: int, nope: int, rope: int, v_dim: int, positions: int, *, x_width: int,
                   offset: int, dtype: str) -> tvm.tirx.PrimFunc:
    """MLA as attention with as many heads of keys and values: q[t, h] = nope | rope(rest), then keys[t, h] |
    rope(x[t, offset:][:rope]), which all heads share, then values[t, h]; each padded with zeros to the width ``dim`` of
    the widest, max(nope + rope, v_dim).

    Parameters: q f32 [n, heads * (nope + rope)]; keys f32 [n, heads * nope]; values f32 [n, heads * v_dim]; x f32
    [n, x_width]; pos int32 [n]; table f32 [positions, rope] (cos, then sin); y ``dtype`` [n, 3 * heads, dim].
    """
    with kernel(__name__) as k:
        n, dim = k.rows_var(), max(nope + rope, v_dim)
        q, keys, values = (k.tensor((n, heads * width)) for width in (nope + rope, nope, v_dim))
        x = k.tensor((n, x_width))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        y = k.tensor((n, 3 * heads, dim), dtype)

        def body(row: Any) -> None:
            position = T.cast(pos[row], "int64")

            def fill(source: T.Buffer, first: Any, count: int, head: Any, used: int) -> None:
                """Columns of ``source`` as the first ``count`` of a head that uses so many."""
                for_lanes(count, tiles.lanes, lambda i, lanes: store(
                    y, load(source, row, first + i, lanes=lanes), row, head, i, lanes=lanes))
                for_lanes(dim - used, tiles.lanes, lambda i, lanes: store(
                    y, splat(0.0, lanes), row, head, used + i, lanes=lanes))

            with T.serial(0, heads) as head:
                query = head * (nope + rope)
                fill(q, query, nope, head, nope + rope)
                rotate(tiles, rope, table, position,
                       lambda i, lanes: load(q, row, query + nope + i, lanes=lanes),
                       lambda value, i, lanes: store(y, value, row, head, nope + i, lanes=lanes))
                fill(keys, head * nope, nope, heads + head, nope + rope)
                rotate(tiles, rope, table, position,
                       lambda i, lanes: load(x, row, offset + i, lanes=lanes),
                       lambda value, i, lanes: store(y, value, row, heads + head, nope + i, lanes=lanes))
                fill(values, head * v_dim, v_dim, 2 * heads + head, v_dim)

        over_rows(n, tiles.parallel_rows, body)
    return k.func


@factory
def value_up(tiles: CpuTiles, heads: int, latent: int, width: int, v_dim: int, weight_format: str, dtype: str,
             activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h] = v_up[h] x[t, h, :latent].

    Parameters: x ``dtype`` [n, heads, width]; v_up [heads, v_dim, latent] stored as ``weight_format``; y f32
    [n, heads * v_dim].
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, heads, width), dtype)
        v_up = matrix(k, tiles, weight_format, (heads, v_dim, latent), tiles.output_tile, activations)
        y = k.tensor((n, heads * v_dim))

        with T.parallel(0, T.int64(heads)) as head:
            own = FloatRows(tiles, T.alloc_buffer((v_up.token_tiles[-1], latent), "float32"), latent)

            def emit(tile: list[Any]) -> None:
                for t, row in enumerate(tile):
                    own.write((t,), lambda i, lanes: load(x, row, head, i, lanes=lanes))
                values = encoded(own, activations, len(tile), latent)
                with T.serial(0, v_up.count) as part:
                    acc = v_up.registers(len(tile))
                    v_up.accumulate(acc, (head, part), [values.row(t) for t in range(len(tile))], (head, part + 1))
                    for row, registers in zip(tile, acc):
                        v_up.finish(registers, part, lambda value, i, lanes: store(
                            y, value, row, head * v_dim + i, lanes=lanes))

            over_token_tiles(n, v_up.token_tiles, emit)
    return k.func


@factory
def widen(tiles: CpuTiles, heads: int, width: int, kept: int, dtype: str) -> tvm.tirx.PrimFunc:
    """y[t, h] = x[t, h, :kept] as float32. Parameters: x ``dtype`` [n, heads, width]; y f32 [n, heads * kept]."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, heads, width), dtype)
        y = k.tensor((n, heads * kept))

        def body(row: Any) -> None:
            with T.serial(0, heads) as head:
                for_lanes(kept, tiles.lanes, lambda i, lanes: store(
                    y, load(x, row, head, i, lanes=lanes), row, head * kept + i, lanes=lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func
