"""Attention in the slots of MLC's paged cache: over its pages, or over the new tokens alone; causal or along a token
tree (MLC contract, section 1.5). TVM's own kernels for these slots take 33 to 37 KB of threadgroup memory, more than
phones have; these take what our other kernels take.

A work-group is one token with a few heads that share keys. Tokens are given already rotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import Kernel, factory, when
from ..tiles import GpuTiles
from .attention_block import Block
from .grid import Local, barrier, float32, kernel, launch, strided
from .matrix import LANES

PAGE = 16  # tokens
_NOTHING = -5.0e4  # base-2 logarithm of the sum over no keys, as MLC's other kernels have it
_SMALLEST = 1e-37  # whose logarithm is finite
_LOG2_E = math.log2(math.e)


@factory
def paged_decode(tiles: GpuTiles, heads: int, kv_heads: int, dim: int, dtype: str) -> tvm.tirx.PrimFunc:
    """One token of each sequence over its pages.

    Parameters: q ``dtype`` [b, heads, dim]; pages ``dtype`` [pages, 2, kv_heads, 16, dim]; page_indptr int32 [b + 1];
    page_values int32 [k]; length_info int32 [b]: tokens in the last page; two int32 [b] that are not used; output
    ``dtype`` [b, heads, dim]; lse f32 [b, heads]: base-2 logarithm of the softmax's sum; then rotary_mode, rope_scale,
    rope_theta (not used) and sm_scale.
    """
    with kernel(__name__) as k:
        batch = k.rows_var()
        q = k.tensor((batch, heads, dim), dtype)
        pages = Pages(k, kv_heads, dim, dtype)
        for _ in range(2):
            auxiliary(batch)
        task = Task(k, tiles, batch, heads, kv_heads, dim, dtype, q)
        scale = _scalars()
        with task.launched(scale) as row:
            length = pages.length(row)
            task.attend(length, lambda j, head, i: pages.element(row, j, head, i))
    return k.func


@factory
def paged_prefill(tiles: GpuTiles, heads: int, kv_heads: int, dim: int, dtype: str, *,
                  tree: bool = False) -> tvm.tirx.PrimFunc:
    """Tokens of several sequences over their pages, which hold them already where ``causal``.

    Parameters: q ``dtype`` [n, heads, dim]; q_indptr int32 [b + 1]: where each sequence's tokens begin; pages,
    page_indptr, page_values, length_info as for ``paged_decode``; int32 [b] and int32 [n] that are not used; output,
    lse; causal (without ``tree``), rotary_mode, rope_scale, rope_theta, sm_scale; with ``tree`` tree_indptr int32
    [b + 1] and tree_order int32 [m, 2]: when a walk enters and leaves each node.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        q = k.tensor((n, heads, dim), dtype)
        starts = auxiliary(k.rows_var())
        pages = Pages(k, kv_heads, dim, dtype)
        auxiliary(k.rows_var())
        auxiliary(n)
        task = Task(k, tiles, n, heads, kv_heads, dim, dtype, q)
        causal = None if tree else T.arg("causal", T.int32())
        scale = _scalars()
        order = Tree(k) if tree else None
        with task.launched(scale) as row:
            sequence = sequence_of(starts, row)
            length = pages.length(sequence)
            task.attend_rows(row, starts, sequence, length, causal, order,
                             lambda j, head, i: pages.element(sequence, j, head, i))
    return k.func


@factory
def ragged_prefill(tiles: GpuTiles, heads: int, kv_heads: int, dim: int, dtype: str, *, tree: bool = False,
                   latent: int = 0) -> tvm.tirx.PrimFunc:
    """Tokens of several sequences over their new keys and values alone. With ``latent`` values are the first columns of
    the keys, so many of them.

    Parameters: q ``dtype`` [n, heads, dim]; q_indptr int32 [b + 1]; keys, values ``dtype`` [m, kv_heads, dim];
    kv_indptr int32 [b + 1]; int32 [n] that is not used; without ``tree`` int32 [b] that is not used, with it
    tree_indptr and tree_order as for ``paged_prefill``; output (with ``latent`` columns, if that is not 0), lse; causal
    (without ``tree``), rotary_mode, rope_scale, rope_theta, sm_scale.
    """
    with kernel(__name__) as k:
        n, m = k.rows_var(), k.rows_var()
        q = k.tensor((n, heads, dim), dtype)
        starts = auxiliary(k.rows_var())
        keys, values = k.tensor((m, kv_heads, dim), dtype), k.tensor((m, kv_heads, dim), dtype)
        kv_starts = auxiliary(k.rows_var())
        auxiliary(n)
        order = Tree(k) if tree else None
        if not tree:
            auxiliary(k.rows_var())
        task = Task(k, tiles, n, heads, kv_heads, dim, dtype, q, latent)
        causal = None if tree else T.arg("causal", T.int32())
        scale = _scalars()
        with task.launched(scale) as row:
            sequence = sequence_of(starts, row)
            first = T.bind(kv_starts[sequence])

            def element(j: Any, head: Any, i: Any) -> Any:
                if latent:
                    return keys[first + j, head, i]
                column = T.truncmod(i, dim)
                return T.if_then_else(i < dim, keys[first + j, head, column], values[first + j, head, column])

            task.attend_rows(row, starts, sequence, kv_starts[sequence + 1] - first, causal, order, element)
    return k.func


@factory
def merge_state(heads: int, dim: int, dtype: str) -> tvm.tirx.PrimFunc:
    """Attention to two sets of keys from attention to each, in place of the first.

    Parameters: values ``dtype`` [n, heads, dim]; lse f32 [n, heads]; the same of the other. A work-group takes a head
    of a token.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        values, lse, other_values, other_lse = (k.tensor(shape, kind) for _ in range(2) for shape, kind in (
            ((n, heads, dim), dtype), ((n, heads), "float32")))
        with launch((heads, n), (LANES,)) as ((head, row), (item,)):
            mine, other = T.bind(lse[row, head]), T.bind(other_lse[row, head])
            highest = T.bind(T.max(mine, other))
            share, other_share = (T.bind(T.exp2(value - highest)) for value in (mine, other))
            whole = T.bind(share + other_share)
            strided(item, dim, LANES, lambda i: T.buffer_store(values, T.cast(
                (float32(values[row, head, i]) * share + float32(other_values[row, head, i]) * other_share) / whole,
                dtype), [row, head, i]))
            barrier()  # everyone has read it
            with when(item == 0):
                T.buffer_store(lse, highest + T.log2(whole), [row, head])
    return k.func


class Pages:
    """The parameters pages, page_indptr, page_values, and length_info behind them."""

    def __init__(self, k: Kernel, kv_heads: int, dim: int, dtype: str) -> None:
        self._dim = dim
        self._pages = shifted(k.rows_var(), 2, kv_heads, PAGE, dim, dtype=dtype)
        self._declare_table(k)

    def _declare_table(self, k: Kernel) -> None:
        self._starts, self._values, self._last = (auxiliary(k.rows_var()) for _ in range(3))

    def length(self, sequence: Any) -> Any:
        """Tokens of a sequence."""
        count = T.bind(self._starts[sequence + 1] - self._starts[sequence])
        return T.bind(T.if_then_else(count > 0, (count - 1) * PAGE + self._last[sequence], 0))

    def element(self, sequence: Any, j: Any, head: Any, i: Any) -> Any:
        """Column i of the key of token j | its value."""
        return self._pages[self._page(sequence, j), T.truncdiv(i, self._dim), head, T.truncmod(j, PAGE),
                           T.truncmod(i, self._dim)]

    def _page(self, sequence: Any, j: Any) -> Any:
        return self._values[self._starts[sequence] + T.truncdiv(j, PAGE)]


class Tree:
    """The parameters tree_indptr and tree_order: a node sees another if it is entered while that one is."""

    def __init__(self, k: Kernel) -> None:
        self._starts, self._order = auxiliary(k.rows_var()), auxiliary(k.rows_var(), 2)

    def seen(self, sequence: Any, length: Any, place: Any, count: Any) -> Any:
        """What token ``place`` of the ``count`` new ones sees of ``length``: a function of the token's number."""
        first = T.bind(self._starts[sequence])
        nodes = T.bind(self._starts[sequence + 1] - first)
        entered = T.bind(T.if_then_else(nodes > 0, self._order[first + place + nodes - count, 0], 0))

        def sees(j: Any) -> Any:
            other = first + T.max(T.min(j - (length - nodes), nodes - 1), 0)
            return T.if_then_else(j < length - nodes, T.bool(True),
                                  T.And(entered >= self._order[other, 0], entered < self._order[other, 1]))

        return sees


class Task:
    """One work-group's part, and the parameters output and lse that it writes."""

    def __init__(self, k: Kernel, tiles: GpuTiles, n: Any, heads: int, kv_heads: int, dim: int, dtype: str,
                 q: T.Buffer, latent: int = 0) -> None:
        """``latent``: where values are columns of the keys, how many of them; 0: they are others, as wide."""
        self._tiles, self._n, self._heads, self._group, self._dtype, self._q = (
            tiles, n, heads, heads // kv_heads, dtype, q)
        self._share = tiles.attention_heads(self._group)
        self._columns = (dim, 0, latent, dim) if latent else (dim, dim, dim, 2 * dim)
        self._output, self._lse = k.tensor((n, heads, latent or dim), dtype), k.tensor((n, heads))

    @contextmanager
    def launched(self, scale: Any) -> Iterator[Any]:
        """The launch; gives the token, and writes what was attended to by the end of the block."""
        groups = self._heads // self._share, self._n
        with launch(groups, (LANES, self._tiles.slices)) as ((heads_index, row), (lane, part)):
            item = T.bind(part * LANES + lane)
            first = T.bind(heads_index * self._share)
            self._kv_head = T.bind(T.truncdiv(first, self._group))
            self._block = Block(self._tiles, item, self._share, *self._columns, self._dtype)
            self._block.start(lambda head, i: float32(self._q[row, first + head, i]) * scale)
            yield row
            for head in range(self._share):
                highest, total = map(T.bind, self._block.sums(head))
                with when(item == 0):
                    lse = highest * T.float32(_LOG2_E) + T.log(T.max(total, T.float32(_SMALLEST))) * T.float32(_LOG2_E)
                    T.buffer_store(self._lse, T.Select(total > 0, lse, T.float32(_NOTHING)), [row, first + head])
            self._block.mix(lambda head, i, value: T.buffer_store(
                self._output, T.cast(T.Select(self._block.sums(head)[1] > 0, value, T.float32(0)), self._dtype),
                [row, first + head, i]))

    def attend(self, length: Any, element: Callable[[Any, Any, Any], Any],
               seen: Callable[[Any], Any] | None = None) -> None:
        """Attend to ``length`` tokens, or those of them that are ``seen``; ``element(j, head, i)``: column i of the key
        of token j | its value."""
        size = self._block.size
        with T.serial(0, T.truncdiv(length + (size - 1), size)) as b:
            first = T.bind(b * size)
            some = {} if seen is None else {"seen": lambda j: seen(first + j)}
            self._block.add(T.min(length - first, size), lambda j, i: element(first + j, self._kv_head, i), **some)

    def attend_rows(self, row: Any, starts: T.Buffer, sequence: Any, length: Any, causal: Any, order: Tree | None,
                    element: Callable[[Any, Any, Any], Any]) -> None:
        """Attend to what token ``row``, one of its sequence's new ones, sees of ``length`` tokens."""
        length, place = T.bind(length), T.bind(row - starts[sequence])
        count = T.bind(starts[sequence + 1] - starts[sequence])
        if order is not None:
            self.attend(length, element, order.seen(sequence, length, place, count))
        else:
            self.attend(T.bind(T.if_then_else(causal != 0, T.min(length, T.max(length - count + place + 1, 0)),
                                              length)), element)


def sequence_of(starts: T.Buffer, row: Any) -> Any:
    """The sequence that a token is of: the last one that begins no later."""
    found = Local(1, 0, "int32")
    with T.serial(1, starts.shape[0]) as sequence:
        found.set(0, T.if_then_else(starts[sequence] <= row, sequence, found[0]))
    return T.bind(T.min(found[0], starts.shape[0] - 2))


def auxiliary(*shape: Any) -> T.Buffer:
    """Declare the next parameter: integers that the cache keeps beside others."""
    return shifted(*shape, dtype="int32")


def shifted(*shape: Any, dtype: str) -> T.Buffer:
    """Declare the next parameter: a part of a larger tensor."""
    return T.match_buffer(T.arg("tensor", T.handle()), shape, dtype, offset_factor=1)


def _scalars() -> Any:
    """Declare rotary_mode, rope_scale, rope_theta and sm_scale; gives the last."""
    T.arg("rotary_mode", T.int32())
    T.arg("rope_scale", T.float32())
    T.arg("rope_theta", T.float32())
    return T.arg("sm_scale", T.float32())
