"""How fast a processor multiplies and adds, with nothing to wait for: the roof of the other kernels' arithmetic."""

from __future__ import annotations

import tvm
from tvm.script.ir_builder import tirx as T

from ..activations import PLANES
from ..builder import factory, kernel
from ..tiles import CpuTiles
from .vector import Register, dot, span

_IN_TURN = 4  # steps of the loop's body


@factory
def peak(tiles: CpuTiles, width: int, activations: str) -> tvm.tirx.PrimFunc:
    """From y = x on, ``steps`` times: y = y * a + b; for ``activations`` of bytes y = y + the sum over the four bytes
    of a * b. All of it stays in registers, and as many sums as a tile of a matrix has do not wait for each other.

    Parameters: x [width], factors [2] (a, b), steps (a multiple of 4), y [n, width], rows in parallel; float32, or
    int32 for bytes, which are from 0 to 127.
    """
    lanes, dtype = tiles.lanes, "int32" if PLANES[activations] else "float32"
    chains = max(tiles.token_tiles[-1] * tiles.vectors, 12)  # SSE's and AVX2's tiles are too few for two ports
    with kernel(__name__) as k:
        x, factors = k.tensor((width,), dtype), k.tensor((2,), dtype)
        steps, n = k.scalar("steps"), k.rows_var()
        y = k.tensor((n, width), dtype)
        with T.parallel(0, n) as row:
            a, b = (Register(lanes, T.broadcast(factors[i], lanes), dtype) for i in range(2))
            for start in range(0, width, chains * lanes):
                columns = range(start, min(start + chains * lanes, width), lanes)
                sums = [Register(lanes, x[span(column, lanes)], dtype) for column in columns]
                with T.serial(0, T.floordiv(steps, _IN_TURN)):
                    for one in sums * _IN_TURN:
                        one.set(dot(tiles.dot, one.get(), a.get(), b.get()) if PLANES[activations]
                                else T.fma(one.get(), a.get(), b.get()))
                for one, column in zip(sums, columns):
                    T.buffer_store(y, one.get(), [row, span(column, lanes)])
    return k.func
