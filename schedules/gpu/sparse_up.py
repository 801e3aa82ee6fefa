"""Up projection of the active experts, with SiLU and the router's score in its epilogue."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from ..union import union_tensors
from .grid import Local, ceil_div, kernel, launch, silu
from .matrix import LANES, Row, matrix
from .product import Variant, by_tokens, variants
from .tensor_cores import multiplies, product


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
        w = matrix(k, tiles, weight_format, (experts, expert_size, inputs), tiles.expert_tile(expert_size))
        act = k.tensor((experts, n, expert_size))

        def emit(variant: Variant) -> None:
            # Places without an expert are the last. With the place as the fastest axis they are spread over the groups,
            # so that a driver that deals out ranges of groups gives every core its share of the others.
            groups = experts, w.tiles, ceil_div(n, variant.tokens)
            with launch(groups, (LANES, tiles.slices)) as ((place, tile, block), (lane, part)):
                first, used = block * variant.tokens, T.bind(uses[place])
                expert, output, active = T.bind(ids[place]), w.output(tile, lane), first < used
                multiplier = product(tiles, variant, w, lane, part)
                indices = Local(len(multiplier.rows), dtype="int32")
                with when(active):
                    for i, t in enumerate(multiplier.rows):
                        indices.set(i, tokens[place, T.min(first + t, used - 1)])
                present = [None if isinstance(t, int) and t == 0 else first + t < used for t in multiplier.rows]
                rows = [Row(x, (indices[i],), there) for i, there in enumerate(present)]

                def write(t: Any, value: Any) -> None:
                    with when(T.And(w.owns(tile, lane), first + t < used)):
                        score = scores[tokens[place, first + t], expert]
                        T.buffer_store(act, silu(value) * score, [place, first + t, output])

                multiplier.multiply(w, (expert,), tile, rows, write, active)

        by_tokens(n, variants(tiles, w, tensor=multiplies(tiles, w)), emit)
    return k.func
