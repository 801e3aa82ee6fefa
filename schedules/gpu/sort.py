"""Sorting rows of probabilities: one digit of their bits after the other, the lowest first."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import Local, barrier, ceil_div, kernel, launch, shared

BITS = 4  # of a digit
DIGITS = 1 << BITS
PART = 1024  # elements that a work-group sorts; each work-item takes a run of them


@factory
def sort_pass(tiles: GpuTiles, vocab: int, *, first: bool = False) -> tvm.tirx.PrimFunc:
    """Each row in falling order of one digit of its values' bits; elements with equal digits stay in order.

    Parameters: values f32 [b, vocab], none negative; tokens int32 [b, vocab], their names, left out where ``first``:
    they are numbered then; shift: of the digit's lowest bit; sorted f32 [b, vocab]; names int32 [b, vocab]; counts
    int32 [b, 16, parts]: how many elements of each part of a row, 1024 of them, have each digit.
    """
    parts = ceil_div(vocab, PART)
    with kernel(__name__) as k:
        b = k.rows_var()
        values = k.tensor((b, vocab))
        tokens = None if first else k.tensor((b, vocab), "int32")
        shift = k.scalar("shift")
        result = k.tensor((b, vocab))
        names = k.tensor((b, vocab), "int32")
        counts = k.tensor((b, DIGITS, parts), "int32")

        with launch((parts, b), (tiles.items,)) as ((part, row), (item,)):
            run = _Run(tiles, item, part, vocab, values, row, shift)
            run.count()
            barrier()
            with when(item < DIGITS):
                T.buffer_store(counts, run.total(), [row, item, part])

        with launch((parts, b), (tiles.items,)) as ((part, row), (item,)):
            run, digit = _Run(tiles, item, part, vocab, values, row, shift), T.bind(T.truncmod(item, DIGITS))
            run.count()
            whole, before = Local(1, 0, "int32"), Local(1, 0, "int32")
            with T.serial(0, parts) as other:
                count = T.bind(counts[row, digit, other])
                whole.add(0, count)
                before.add(0, T.Select(other < part, count, T.int32(0)))
            run.place(digit, whole[0], before[0])

            def put(place: Any, at: Any, value: Any) -> None:
                T.buffer_store(result, value, [row, place])
                T.buffer_store(names, at if tokens is None else tokens[row, at], [row, place])

            run.move(put)
    return k.func


class _Run:
    """A work-item's elements, and by digit how many of them there are, or where they begin, in memory of the group."""

    def __init__(self, tiles: GpuTiles, item: Any, part: Any, vocab: int, values: T.Buffer, row: Any,
                 shift: Any) -> None:
        self._items, self._item, self._vocab, self._run = tiles.items, item, vocab, PART // tiles.items
        self._first = T.bind(part * PART + item * self._run)
        self._counts = shared((DIGITS, tiles.items), "int32")
        self._values, self._digits = Local(self._run), Local(self._run, dtype="int32")
        for i in range(self._run):
            at = T.bind(self._first + i)
            self._values.set(i, T.if_then_else(at < vocab, values[row, at], T.float32(0)))
            digit = T.bitwise_and(T.shift_right(T.reinterpret("int32", self._values[i]), shift), T.int32(DIGITS - 1))
            self._digits.set(i, T.Select(at < vocab, digit, T.int32(DIGITS)))

    def count(self) -> None:
        """By digit the number of elements."""
        with T.serial(0, DIGITS) as digit:
            T.buffer_store(self._counts, sum((self._is(i, digit) for i in range(1, self._run)), self._is(0, digit)),
                           [digit, self._item])

    def total(self) -> Any:
        """Of the digit that is the item's number, all items' elements."""
        found = Local(1, 0, "int32")
        with T.serial(0, self._items) as other:
            found.add(0, self._counts[self._item, other])
        return found[0]

    def place(self, digit: Any, whole: Any, before: Any) -> None:
        """Make counts the places of the first elements that they count. Every item does so for one digit and one
        section of the items. ``whole``: of that digit, the elements of the row; ``before``: of the parts before this
        one. Contains barriers."""
        sections = self._items // DIGITS
        section = T.bind(T.truncdiv(self._item, DIGITS))
        wholes, sums = shared((DIGITS,), "int32"), shared((DIGITS, sections), "int32")
        counts, place = Local(DIGITS, dtype="int32"), Local(1, before, "int32")
        with when(section == 0):
            T.buffer_store(wholes, whole, [digit])
        barrier()
        for i in range(DIGITS):
            counts.set(i, self._counts[digit, section * DIGITS + i])
        T.buffer_store(sums, sum((counts[i] for i in range(1, DIGITS)), counts[0]), [digit, section])
        barrier()
        for other in range(DIGITS):  # the larger digits come first
            place.add(0, T.Select(digit < other, wholes[other], T.int32(0)))
        for other in range(sections):
            place.add(0, T.Select(other < section, sums[digit, other], T.int32(0)))
        for i in range(DIGITS):
            T.buffer_store(self._counts, place[0], [digit, section * DIGITS + i])
            place.add(0, counts[i])
        barrier()

    def move(self, put: Any) -> None:
        """``put(place, at, value)`` for every element: where it goes, where it was, and what it is."""
        for i in range(self._run):
            at = T.bind(self._first + i)
            with when(at < self._vocab):
                digit = T.bind(self._digits[i])
                place = T.bind(self._counts[digit, self._item])
                put(sum((self._is(j, digit) for j in range(i)), place), at, self._values[i])

    def _is(self, i: int, digit: Any) -> Any:
        return T.Select(self._digits[i] == digit, T.int32(1), T.int32(0))
