"""How fast a device multiplies and adds, with nothing to wait for: the roof of the other kernels' arithmetic."""

from __future__ import annotations

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import Local, ceil_div, kernel, launch, load, vector

_LANES = 4  # the longest vector of all languages


@factory
def peak(tiles: GpuTiles, width: int, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """From y = x on, ``steps`` times: y = y * a + b, in private memory; parameters as the CPU kernel's for float32. A
    work-item has as many numbers of a row as sums in the other kernels, in vectors that do not wait for each other.
    ``width``: a multiple of that."""
    items, chains = tiles.items, tiles.sums // _LANES
    parts = width // tiles.sums
    with kernel(__name__) as k:
        x, factors = k.tensor((width,)), k.tensor((2,))
        steps, n = k.scalar("steps"), k.rows_var()
        y = k.tensor((n, width))
        with launch((ceil_div(n * parts, items),), (items,)) as ((group,), (item,)):
            place = T.bind(group * items + item)
            with when(place < n * parts):
                row, first = T.bind(T.floordiv(place, parts)), T.bind(T.floormod(place, parts) * chains)
                a, b = (T.bind(T.broadcast(factors[i], _LANES)) for i in range(2))
                sums = Local(chains, dtype=vector("float32", _LANES))
                for i in range(chains):
                    sums.set(i, load(x, (), first + i, _LANES))
                with T.serial(0, steps):
                    for i in range(chains):
                        sums.set(i, sums[i] * a + b)
                for i in range(chains):
                    T.buffer_store(y, sums[i], [row, T.ramp((first + i) * _LANES, 1, _LANES)])
    return k.func
