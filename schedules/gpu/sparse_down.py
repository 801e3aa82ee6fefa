"""Down projection of the active experts, summed over experts into the residual stream."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import choose, factory, when
from ..tiles import GpuTiles
from ..union import union_tensors
from .grid import Local, barrier, by_tokens, ceil_div, kernel, launch, shared, strided
from .matrix import LANES, Row, finish, matrix


@factory
def sparse_down(tiles: GpuTiles, experts: int, outputs: int, expert_size: int, weight_format: str,
                residual_scale: float, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h] = residual[t, h] + residual_scale * sum_i sum_d act[i, j, d] * w[e, h, d], e = ids[i], t = tokens[i, j];
    parameters as the CPU kernel's. A work-group computes a tile of outputs for a tile of tokens: its slices share the
    blocks of inputs of all experts of the union that one of these tokens uses."""
    with kernel(__name__) as k:
        n = k.rows_var()
        act = k.tensor((experts, n, expert_size))
        ids, count, uses, tokens = union_tensors(k, experts, n)
        w = matrix(k, weight_format, (experts, outputs, expert_size), tiles.output_tile)
        residual = k.tensor((n, outputs))
        y = k.tensor((n, outputs))

        def emit(token_tile: int) -> None:
            with launch((w.tiles, ceil_div(n, token_tile)), (LANES, tiles.slices)) as ((tile, block), (lane, part)):
                first, output, places = block * token_tile, w.output(tile, lane), T.bind(count[0])
                # At each place: the first of the expert's tokens in this tile, and a bit for each of the tile's tokens.
                starts, masks = shared((experts,), "int32"), shared((experts,), "int32")

                def find(place: Any) -> None:
                    start, mask = _tokens_within(tokens, place, uses[place], first, token_tile)
                    T.buffer_store(starts, start, [place])
                    T.buffer_store(masks, mask, [place])

                strided(part * LANES + lane, experts, tiles.items, find, unroll=True)
                barrier()
                acc = Local(token_tile, 0.0)

                def multiply(step: Any) -> None:
                    place, inputs = T.truncdiv(step, w.blocks), T.truncmod(step, w.blocks)
                    start, mask = T.bind(starts[place]), T.bind(masks[place])
                    with when(mask != 0):
                        expert, indices = T.bind(ids[place]), Local(token_tile, dtype="int32")
                        rows = []
                        for t in range(token_tile):
                            indices.set(t, start + T.popcount(T.bitwise_and(mask, T.int32((1 << t) - 1))))
                            present = T.bitwise_and(mask, T.int32(1 << t)) != 0
                            rows.append(Row(act, (place, indices[t]), present))
                        w.add_block(acc, (expert,), output, rows, inputs)

                strided(part, places * w.blocks, tiles.slices, multiply)
                barrier()  # before ``finish`` reuses the memory of starts and masks

                def write(t: Any, value: Any) -> None:
                    row = first + t
                    with when(T.And(w.owns(tile, lane), row < n)):
                        T.buffer_store(y, residual[row, output] + T.float32(residual_scale) * value, [row, output])

                finish(tiles, acc, lane, part, write)

        by_tokens(n, tiles.token_tiles, emit)
    return k.func


def _tokens_within(tokens: T.Buffer, place: Any, used: Any, first: Any, size: int) -> tuple[Any, Any]:
    """Of the ascending tokens[place, :used], those in first .. first+size-1: the index of the first of them, and a mask
    with bit t for token first + t."""
    low, high, mask = Local(1, 0, "int32"), Local(1, used, "int32"), Local(1, 0, "int32")
    with T.While(low[0] < high[0]):
        middle = T.bind(T.shift_right(low[0] + high[0], T.int32(1)))
        choose(tokens[place, middle] < first, lambda: low.set(0, middle + 1), lambda: high.set(0, middle))
    with T.serial(0, T.min(T.int32(size), used - low[0])) as j:
        bit = T.bind(tokens[place, low[0] + j] - first)
        with when(bit < size):
            mask.set(0, T.bitwise_or(mask[0], T.shift_left(T.int32(1), bit)))
    return low[0], mask[0]
