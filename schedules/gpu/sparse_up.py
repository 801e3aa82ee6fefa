"""Up projection of the active experts, with SiLU and the router's score in its epilogue."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from ..union import union_tensors
from .grid import Local, by_tokens, ceil_div, kernel, launch, silu
from .matrix import LANES, Row, finish, matrix


@factory
def sparse_up(tiles: GpuTiles, experts: int, inputs: int, expert_size: int, weight_format: str,
              activations: str = "f32") -> tvm.tirx.PrimFunc:
    """act[i, j, d] = silu(sum_h x[t, h] * w[e, d, h]) * scores[t, e] with e = ids[i], t = tokens[i, j]; parameters as
    the CPU kernel's. One launch for all experts, places without one included: a work-group computes a tile of an
    expert's outputs for a tile of its tokens, or nothing."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, inputs))
        scores = k.tensor((n, experts))
        ids, _, uses, tokens = union_tensors(k, experts, n)
        w = matrix(k, weight_format, (experts, expert_size, inputs), tiles.expert_tile(expert_size))
        act = k.tensor((experts, n, expert_size))

        def emit(token_tile: int) -> None:
            groups = w.tiles, experts, ceil_div(n, token_tile)
            with launch(groups, (LANES, tiles.slices)) as ((tile, place, block), (lane, part)):
                first, used = block * token_tile, T.bind(uses[place])
                expert, output = T.bind(ids[place]), w.output(tile, lane)
                acc = Local(token_tile, 0.0)
                with when(first < used):
                    rows = []
                    for t in range(token_tile):
                        token = T.bind(tokens[place, T.min(first + t, used - 1)])
                        rows.append(Row(x, (token,), first + t < used if t else None))
                    w.accumulate(acc, (expert,), output, rows, part, tiles.slices)

                def write(t: Any, value: Any) -> None:
                    with when(T.And(w.owns(tile, lane), first + t < used)):
                        score = scores[tokens[place, first + t], expert]
                        T.buffer_store(act, silu(value) * score, [place, first + t, output])

                # The barrier is outside of conditions on what memory holds: not every driver sees that groups agree.
                finish(tiles, acc, lane, part, write, first < used)

        by_tokens(n, tiles.token_tiles, emit)
    return k.func
