"""Rows times a packed matrix, by one work-group: a tile of outputs for a tile of rows, in one of two ways.

*Sliced*: every work-item has all rows of the tile. The blocks of inputs of an output are dealt out to the ``slices``
work-items that share it, weights become float32 in registers, the sums of the slices are added up at the end.

*Staged*, for many rows: the rows are dealt out to these work-items, and all of them go through all inputs. A block of
inputs at a time, the group copies its rows and turns the weights into float32 in threadgroup memory: each weight is
read, and unpacked, once for all rows of the tile, each number of a row once for all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tvm.script.ir_builder import tirx as T

from ..builder import choose, when
from ..tiles import MAX_TREE_NODES, GpuTiles
from .grid import Local, barrier, shared, strided
from .matrix import BLOCK, LANES, Matrix, Row

_WEIGHTS_BYTES = 4 * BLOCK * LANES  # of a staged block


class Variant(NamedTuple):
    """``tokens``: rows of a tile."""

    tokens: int
    staged: bool = False

    def local_bytes(self, tiles: GpuTiles) -> int:
        """Threadgroup memory that a ``Product`` takes."""
        return self.tokens * 4 * BLOCK + _WEIGHTS_BYTES if self.staged else self.tokens * 4 * tiles.items


def variants(tiles: GpuTiles, *, row_bytes: int = 0, other_bytes: int = 0, most: int | None = None) -> list[Variant]:
    """All variants whose threadgroup memory suffices, where a kernel keeps ``row_bytes`` per row and ``other_bytes``
    there besides its product; sliced ones of at most ``most`` rows."""
    def fits(variant: Variant) -> bool:
        return variant.local_bytes(tiles) + variant.tokens * row_bytes + other_bytes <= tiles.local_bytes

    sizes = [tokens for tokens in tiles.token_tiles if most is None or tokens <= most]
    sliced = [variant for variant in map(Variant, sizes) if fits(variant)]
    sizes = [tiles.prefill_tile >> halvings for halvings in range(3)]
    staged = [Variant(tokens, staged=True) for tokens in sizes if tokens > sliced[-1].tokens]
    return sliced + [variant for variant in staged if fits(variant)][:1]


def by_tokens(n: Any, choices: Sequence[Variant], emit: Callable[[Variant], None]) -> None:
    """``emit(variant)`` describes the launches of a variant; the host picks the smallest that holds all n rows, else
    the largest, the staged one for more rows than a tree has."""
    first, *rest = choices
    if not rest:
        emit(first)
    else:
        most = MAX_TREE_NODES if rest[0].staged else first.tokens
        choose(n <= most, lambda: emit(first), lambda: by_tokens(n, rest, emit))


class Product:
    """What a work-item, ``lane`` and ``part`` of its group, needs to multiply a tile of rows by matrices. ``rows``:
    which of them it has, ascending."""

    def __init__(self, tiles: GpuTiles, variant: Variant, lane: Any, part: Any) -> None:
        self._slices, self._staged, self._lane, self._part = tiles.slices, variant.staged, lane, part
        self.rows = [part + turn for turn in range(0, variant.tokens, tiles.slices)] if variant.staged else list(
            range(variant.tokens))
        if variant.staged:
            self._weights, self._inputs = shared((BLOCK, LANES)), shared((variant.tokens, BLOCK))
        else:
            self._partial = shared((tiles.slices, variant.tokens, LANES))

    def multiply(self, w: Matrix, outer: Sequence[Any], output: Any, rows: Sequence[Row],
                 write: Callable[[Any, Any], None], active: Any = None) -> None:
        """``write(t, sum)`` with row t times w[outer, output] for every row t of the tile, by one work-item each;
        ``rows`` are this item's. Contains barriers, none behind its last read of threadgroup memory. ``active``:
        whether the group has anything to do (None: it has); rows and weights are not read otherwise."""
        acc, some = Local(len(rows), 0.0), T.bool(True) if active is None else active
        if self._staged:
            self.accumulate(acc, w, outer, output, rows, active)
            with when(some):
                for i, t in enumerate(self.rows):
                    write(t, T.bind(acc[i]))
        else:
            with when(some):
                w.accumulate(acc, outer, output, rows, self._part, self._slices)
            # The barrier is outside of conditions on what memory holds: not every driver sees that groups agree.
            self.finish(acc, write, active)

    def accumulate(self, acc: Local, w: Matrix, outer: Sequence[Any], output: Any, rows: Sequence[Row],
                   active: Any = None) -> None:
        """acc[i] += rows[i] times w[outer, output], staged; else as ``multiply``."""
        some = T.bool(True) if active is None else active
        # A group without work goes through the barriers of one block: a loop that may be empty would be a condition.
        blocks = w.blocks if active is None else T.Select(active, T.int32(w.blocks), T.int32(1))
        with T.serial(0, blocks) as block:
            barrier()  # everyone is done with the block before
            with when(some):
                w.stage(outer, output, block, self._part, self._slices,
                        lambda i, value: T.buffer_store(self._weights, value, [i, self._lane]))
                staged = [row if row.in_group else row.stage(self._inputs, t, block * BLOCK, self._lane, w.inputs)
                          for t, row in zip(self.rows, rows)]
            barrier()
            with when(some):
                w.add_staged(acc, staged, block, lambda i: self._weights[i, self._lane])

    def finish(self, acc: Local, write: Callable[[Any, Any], None], active: Any = None) -> None:
        """Add up the sums of an output's slices, first to last, then ``write(t, sum)`` for each row t of the tile, by
        one work-item each. Contains a barrier. ``active``: whether the group has anything to write (None: it has)."""
        some, partial = T.bool(True) if active is None else active, self._partial
        with when(some):
            for t in range(acc.size):
                T.buffer_store(partial, acc[t], [self._part, t, self._lane])
        barrier()

        def add_up(t: Any) -> None:
            result = partial[0, t, self._lane]
            for other in range(1, self._slices):
                result = result + partial[other, t, self._lane]
            write(t, T.bind(result))

        with when(some):
            strided(self._part, acc.size, self._slices, add_up)
