"""Queries of multi-head latent attention: projection per head, rotation, and the absorbed key projection."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .matrix import matrix
from .rope import rotate
from .rows import FloatRows, encoded, rows
from .vector import over_token_tiles, store


@factory
def latent_query(tiles: CpuTiles, heads: int, inputs: int, nope: int, rope: int, latent: int, positions: int,
                 weight_format: str, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """q[t, h] = k_up[h] (q_up[h] x[t])[:nope] | rotated (q_up[h] x[t])[nope:].

    Parameters: x [n, inputs] as ``activations``; q_up [heads, nope+rope, inputs] and k_up [heads, latent, nope]
    stored as ``weight_format``; pos int32 [n]; table f32 [positions, rope] (cos, then sin); q f32
    [n, heads, latent+rope].
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = rows(k, tiles, activations, (n,), inputs)
        q_up, k_up = (matrix(k, tiles, weight_format, shape, tiles.output_tile, activations)
                      for shape in ((heads, nope + rope, inputs), (heads, latent, nope)))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        q = k.tensor((n, heads, latent + rope))

        with T.parallel(0, T.int64(heads)) as head:
            own = FloatRows(tiles, T.alloc_buffer((q_up.token_tiles[-1], nope + rope), "float32"), nope + rope)

            def emit(tile: list[Any]) -> None:
                with T.serial(0, q_up.count) as part:
                    acc = q_up.registers(len(tile))
                    q_up.accumulate(acc, (head, part), [x.row(row) for row in tile], (head, part + 1))
                    for t, registers in enumerate(acc):
                        q_up.finish(registers, part,
                                    lambda value, i, lanes: store(own.buffer, value, t, i, lanes=lanes))
                unrotated = encoded(own, activations, len(tile), nope)
                with T.serial(0, k_up.count) as part:
                    acc = k_up.registers(len(tile))
                    k_up.accumulate(acc, (head, part), [unrotated.row(t) for t in range(len(tile))], (head, part + 1))
                    for row, registers in zip(tile, acc):
                        k_up.finish(registers, part,
                                    lambda value, i, lanes: store(q, value, row, head, i, lanes=lanes))
                for t, row in enumerate(tile):
                    rotate(tiles, rope, table, T.cast(pos[row], "int64"),
                           lambda i, lanes: own.row(t).read(nope + i, lanes),
                           lambda value, i, lanes: store(q, value, row, head, latent + i, lanes=lanes))

            over_token_tiles(n, q_up.token_tiles, emit)
    return k.func
