"""Down projection of the active experts, summed over experts into the residual stream."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import choose, factory, when
from ..tiles import GpuTiles
from ..union import union_tensors
from .grid import Local, barrier, ceil_div, kernel, launch, shared, strided
from .matrix import LANES, Row, matrix
from .product import Product, Variant, by_tokens, variants
from .tensor_cores import multiplies, product


@factory
def sparse_down(tiles: GpuTiles, experts: int, outputs: int, expert_size: int, weight_format: str,
                residual_scale: float, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h] = residual[t, h] + residual_scale * sum_i sum_d act[i, j, d] * w[e, h, d], e = ids[i], t = tokens[i, j];
    parameters as the CPU kernel's. A work-group computes a tile of outputs for a tile of tokens, over all experts of
    the union that one of these tokens uses: its slices share the blocks of inputs of these experts; where weights are
    staged, the tokens of one expert after the other, whose sums are kept in threadgroup memory."""
    with kernel(__name__) as k:
        n = k.rows_var()
        act = k.tensor((experts, n, expert_size))
        ids, count, uses, tokens = union_tensors(k, experts, n)
        w = matrix(k, tiles, weight_format, (experts, outputs, expert_size))
        residual = k.tensor((n, outputs))
        y = k.tensor((n, outputs))

        def emit_sliced(variant: Variant) -> None:
            token_tile = variant.tokens
            groups = ceil_div(n, token_tile), w.tiles  # those that read the same weights are neighbours
            with launch(groups, (LANES, tiles.slices)) as ((block, tile), (lane, part)):
                first, output, places = block * token_tile, w.output(tile, lane), T.bind(count[0])
                multiplier = product(tiles, variant, w, lane, part)
                # At each place: the first of the expert's tokens in this tile, and a bit for each of the tile's tokens.
                starts, masks = shared((experts,), "int32"), shared((experts,), "int32")

                def find(place: Any) -> None:
                    start, mask = _tokens_within(tokens, place, uses[place], first, token_tile)
                    T.buffer_store(starts, start, [place])
                    T.buffer_store(masks, mask, [place])

                strided(part * LANES + lane, experts, tiles.items, find, unroll=True)
                barrier()
                sums, steps = multiplier.sums(w), multiplier.steps(w)

                def multiply(step: Any) -> None:
                    place, inputs = T.truncdiv(step, steps), T.truncmod(step, steps)
                    start, mask = T.bind(starts[place]), T.bind(masks[place])
                    with when(mask != 0):
                        expert, indices = T.bind(ids[place]), Local(len(multiplier.rows), dtype="int32")
                        rows = []
                        for i, t in enumerate(multiplier.rows):
                            bit = T.shift_left(T.int32(1), t)
                            indices.set(i, start + T.popcount(T.bitwise_and(mask, bit - 1)))
                            rows.append(Row(act, (place, indices[i]), T.bitwise_and(mask, bit) != 0))
                        multiplier.add(sums, w, (expert,), tile, rows, inputs)

                strided(multiplier.slice, places * steps, multiplier.slices, multiply)
                barrier()  # before ``finish`` reuses the memory of starts and masks

                def write(t: Any, value: Any) -> None:
                    row = first + t
                    with when(T.And(w.owns(tile, lane), row < n)):
                        T.buffer_store(y, residual[row, output] + T.float32(residual_scale) * value, [row, output])

                multiplier.finish(w, sums, write)

        def emit_staged(variant: Variant) -> None:
            token_tile = variant.tokens
            groups = ceil_div(n, token_tile), w.tiles  # those that read the same weights are neighbours
            with launch(groups, (LANES, tiles.slices)) as ((block, tile), (lane, part)):
                first, output, places = block * token_tile, w.output(tile, lane), T.bind(count[0])
                # At each place, the expert's tokens in this tile: the first of them, and the first behind them.
                starts, stops = shared((experts,), "int32"), shared((experts,), "int32")
                sums, product = shared((token_tile, LANES)), Product(tiles, variant, w, lane, part)

                def find(place: Any) -> None:
                    for bounds, token in ((starts, first), (stops, first + token_tile)):
                        T.buffer_store(bounds, _first_from(tokens, place, uses[place], token), [place])

                strided(part * LANES + lane, experts, tiles.items, find, unroll=True)
                strided(part, token_tile, tiles.slices, lambda t: T.buffer_store(sums, 0.0, [t, lane]))
                barrier()
                with T.serial(0, places) as place:
                    start, stop, expert = T.bind(starts[place]), T.bind(stops[place]), T.bind(ids[place])
                    own = [start + t for t in product.rows]
                    acc = Local(len(own), 0.0)
                    rows = [Row(act, (place, j), j < stop) for j in own]
                    product.accumulate(acc, w, (expert,), tile, rows, start < stop)
                    at = Local(len(own), dtype="int32")
                    barrier()
                    for i, j in enumerate(own):
                        with when(j < stop):
                            at.set(i, tokens[place, j] - first)
                            acc.add(i, sums[at[i], lane])
                    barrier()
                    for i, j in enumerate(own):
                        with when(j < stop):
                            T.buffer_store(sums, acc[i], [at[i], lane])
                barrier()

                def write(t: Any) -> None:
                    row = first + t
                    with when(T.And(w.owns(tile, lane), row < n)):
                        T.buffer_store(y, residual[row, output] + T.float32(residual_scale) * sums[t, lane],
                                       [row, output])

                strided(part, token_tile, tiles.slices, write)

        found = variants(tiles, w, row_bytes=4 * LANES, other_bytes=8 * experts, tensor=multiplies(tiles, w))
        by_tokens(n, found, lambda variant: (emit_staged if variant.staged else emit_sliced)(variant))
    return k.func


def _first_from(tokens: T.Buffer, place: Any, used: Any, token: Any) -> Any:
    """Index of the first of the ascending tokens[place, :used] that is not below ``token``."""
    low, high = Local(1, 0, "int32"), Local(1, used, "int32")
    with T.While(low[0] < high[0]):
        middle = T.bind(T.shift_right(low[0] + high[0], T.int32(1)))
        choose(tokens[place, middle] < token, lambda: low.set(0, middle + 1), lambda: high.set(0, middle))
    return low[0]


def _tokens_within(tokens: T.Buffer, place: Any, used: Any, first: Any, size: int) -> tuple[Any, Any]:
    """Of the ascending tokens[place, :used], those in first .. first+size-1: the index of the first of them, and a mask
    with bit t for token first + t."""
    low, mask = T.bind(_first_from(tokens, place, used, first)), Local(1, 0, "int32")
    with T.serial(0, T.min(T.int32(size), used - low)) as j:
        bit = T.bind(tokens[place, low + j] - first)
        with when(bit < size):
            mask.set(0, T.bitwise_or(mask[0], T.shift_left(T.int32(1), bit)))
    return low, mask[0]
