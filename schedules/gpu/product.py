"""Rows times a packed matrix, by one work-group: a tile of outputs for a tile of rows, in one of two ways.

*Sliced*: every work-item has all rows of the tile and a vector of the outputs. The inputs are dealt out, eight at a
time, to the work-items of a vector, weights become float32 in registers, the sums of these slices are added up at the
end.

*Staged*, for many rows: a work-item has one output and a share of the rows, and goes through all inputs. A block of
inputs at a time, the group copies its rows and turns the weights into float32 in threadgroup memory: each weight is
read, and unpacked, once for all rows of the tile, each number of a row once for all outputs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tvm.script.ir_builder import tirx as T

from ..builder import choose, when
from ..tiles import MAX_TREE_NODES, GpuTiles
from .grid import Local, barrier, shared, strided
from .matrix import BLOCK, LANES, Matrix, Row

TENSOR_ROWS = 16
_WEIGHTS_BYTES = 4 * BLOCK * LANES  # of a staged block


class Variant(NamedTuple):
    """``tokens``: rows of a tile. ``tensor``: on tensor cores (tensor_cores.py)."""

    tokens: int
    staged: bool = False
    tensor: bool = False

    def local_bytes(self, tiles: GpuTiles, w: Matrix) -> int:
        """Threadgroup memory that a product takes."""
        if self.tensor:
            return self.tokens * 4 * tiles.items
        if self.staged:
            return self.tokens * 4 * BLOCK + _WEIGHTS_BYTES
        return _rows_added_up(tiles, self, w) * 4 * tiles.items * (w.vector + 1)


def sliced_variants(tiles: GpuTiles, w: Matrix, most: int | None = None) -> list[Variant]:
    """Variants of at most ``most`` rows whose sums fit into a work-item's registers."""
    return [Variant(tokens) for tokens in tiles.token_tiles
            if tokens * w.vector <= tiles.sums and (most is None or tokens <= most)]


def variants(tiles: GpuTiles, w: Matrix, *, row_bytes: int = 0, other_bytes: int = 0,
             most: int | None = None, tensor: bool = False) -> list[Variant]:
    """All variants whose threadgroup memory suffices, where a kernel keeps ``row_bytes`` per row and ``other_bytes``
    there besides its product; sliced ones of at most ``most`` rows. ``tensor``: up to 64 rows on tensor cores,
    ``TENSOR_ROWS`` at a time."""
    def fits(variant: Variant) -> bool:
        return variant.local_bytes(tiles, w) + variant.tokens * row_bytes + other_bytes <= tiles.local_bytes

    narrow = sliced_variants(tiles, w, most)
    sliced = [variant for variant in narrow if fits(variant)] or narrow[:1]  # too large: the build says so
    if tensor:
        sliced = [variant for variant in sliced if variant.tokens < TENSOR_ROWS] + [Variant(TENSOR_ROWS, tensor=True)]
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
    """What a work-item, ``lane`` and ``part`` of its group, needs to multiply a tile of rows by matrices like ``w``.
    ``rows``: which of them it has, ascending. Sliced, it has vector ``number`` of a tile's outputs and ``slice``
    of the ``slices`` of the inputs."""

    def __init__(self, tiles: GpuTiles, variant: Variant, w: Matrix, lane: Any, part: Any) -> None:
        self._tiles, self._staged, self._lane, self._part = tiles, variant.staged, lane, part
        self._column = w.column(lane)
        self.rows = [part + turn for turn in range(0, variant.tokens, tiles.slices)] if variant.staged else list(
            range(variant.tokens))
        if variant.staged:
            self._weights, self._inputs = shared((BLOCK, LANES)), shared((variant.tokens, BLOCK))
        else:
            self.slices = tiles.slices * w.vector
            self.slice = T.bind(part * w.vector + T.truncdiv(lane, w.vectors))
            self.number = T.bind(T.truncmod(lane, w.vectors))
            self._at_once = _rows_added_up(tiles, variant, w)
            self._partial = shared((self.slices, self._at_once, LANES))
            self._sums = shared((tiles.slices, self._at_once, LANES))

    def multiply(self, w: Matrix, outer: Sequence[Any], tile: Any, rows: Sequence[Row],
                 write: Callable[[Any, Any], None], active: Any = None) -> None:
        """``write(t, sum)`` with row t times w[outer, output] for every row t of the tile and every output of the
        matrix's tile, by one work-item each, whose ``lane`` is the output's; ``rows`` are this item's. Contains
        barriers, none behind its last read of threadgroup memory. ``active``: whether the group has anything to do
        (None: it has); rows and weights are not read otherwise."""
        some = T.bool(True) if active is None else active
        if self._staged:
            acc = Local(len(rows), 0.0)
            self.accumulate(acc, w, outer, tile, rows, active)
            with when(some):
                for i, t in enumerate(self.rows):
                    write(t, T.bind(acc[i]))
        else:
            sums = self.sums(w)
            with when(some):
                strided(self.slice, self.steps(w), self.slices, lambda step: self.add(sums, w, outer, tile, rows, step))
            # The barriers are outside of conditions on what memory holds: not every driver sees that groups agree.
            self.finish(w, sums, write, active)

    def accumulate(self, acc: Local, w: Matrix, outer: Sequence[Any], tile: Any, rows: Sequence[Row],
                   active: Any = None) -> None:
        """acc[i] += rows[i] times w[outer, output], staged; else as ``multiply``."""
        some = T.bool(True) if active is None else active
        # A group without work goes through the barriers of one block: a loop that may be empty would be a condition.
        blocks = w.blocks if active is None else T.Select(active, T.int32(w.blocks), T.int32(1))
        with T.serial(0, blocks) as block:
            barrier()  # everyone is done with the block before
            with when(some):
                w.stage(self._weights, outer, tile, block, self._part * LANES + self._lane, self._tiles.items)
                staged = [row if row.in_group else row.stage(self._inputs, t, block * BLOCK, self._lane, w.inputs)
                          for t, row in zip(self.rows, rows)]
            barrier()
            with when(some):
                w.add_staged(acc, staged, block, lambda i: self._weights[i, self._column])

    def steps(self, w: Matrix) -> int:
        """Parts of the inputs, which slices take in turn."""
        return w.octets

    def sums(self, w: Matrix) -> Local:
        """For sums of the rows times a vector of outputs, zeros."""
        return w.sums(len(self.rows))

    def add(self, sums: Local, w: Matrix, outer: Sequence[Any], tile: Any, rows: Sequence[Row], step: Any) -> None:
        """sums += rows times w[outer, output] over the inputs of a step."""
        w.accumulate(sums, outer, tile, self.number, rows, step)

    def finish(self, w: Matrix, sums: Local, write: Callable[[Any, Any], None], active: Any = None) -> None:
        """Add up the sums of an output's slices, ``vector`` neighbouring ones first, then the sums of these, first to
        last; then ``write(t, sum)`` as ``multiply`` does. Contains barriers. ``active``: whether the group has anything
        to write (None: it has)."""
        some, chunks = T.bool(True) if active is None else active, w.chunks
        for first in range(0, sums.size // chunks, self._at_once):
            with when(some):
                for t in range(self._at_once):
                    for chunk in range(chunks):
                        w.put(self._partial, (self.slice, t), self.number, chunk, sums[(first + t) * chunks + chunk])
            barrier()
            with when(some):
                with T.serial(0, self._at_once) as t:
                    terms = [self._partial[self._part * w.vector + i, t, self._column] for i in range(w.vector)]
                    T.buffer_store(self._sums, functools.reduce(operator.add, terms), [self._part, t, self._lane])
            barrier()

            def add_up(t: Any, first: int = first) -> None:
                terms = [self._sums[part, t, self._lane] for part in range(self._tiles.slices)]
                write(first + t, T.bind(functools.reduce(operator.add, terms)))

            with when(some):
                strided(self._part, self._at_once, self._tiles.slices, add_up)


def _rows_added_up(tiles: GpuTiles, variant: Variant, w: Matrix) -> int:
    """Rows of a sliced tile, a power of two, whose sums are added up together: in a quarter of threadgroup memory."""
    rows = max(1, tiles.local_bytes // 4 // (4 * tiles.items * w.vector))
    return min(variant.tokens, 1 << rows.bit_length() - 1)
