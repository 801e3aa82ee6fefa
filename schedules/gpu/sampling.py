"""What MLC's engine has a device do to choose tokens, and to judge drafted ones (MLC contract, section 1.3). A
work-group takes a token to choose, or a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import Local, barrier, ceil_div, kernel, launch, shared, strided, total
from .matrix import LANES

_NEVER = 3.0e38  # no sum of probabilities reaches it
_NO_MASS = 1e-7  # a remainder of less is none
_PIVOT_BITS = 30  # of float32 numbers below 2, which are ordered as their bits


@factory
def multinomial(tiles: GpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """The first token up to which the probabilities' sum exceeds a share of their whole.

    Parameters: probs f32 [b, vocab]; shares f32 [s], from 0 to below 1; rows int32 [s]; tokens int32 [s].
    """
    with kernel(__name__) as k:
        b, s = k.rows_var(), k.rows_var()
        probs = k.tensor((b, vocab))
        shares = k.tensor((s,))
        rows, tokens = k.tensor((s,), "int32"), k.tensor((s,), "int32")
        with launch((s,), (tiles.items,)) as ((sample,), (item,)):
            row = T.bind(rows[sample])
            sums = _RunningSums(tiles, item, vocab, lambda i: probs[row, i])
            wanted = T.bind(shares[sample] * sums.total())
            token, _ = sums.first(lambda value: value > wanted)
            with when(item == 0):
                T.buffer_store(tokens, token, [sample])
    return k.func


@factory
def sample_top_p(tiles: GpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """``multinomial`` among the most likely tokens, as few of them as reach ``top_p`` together.

    Parameters: probs f32 [b, vocab] in falling order; names int32 [b, vocab]: their tokens; shares f32 [s]; rows
    int32 [s]; top_p f32 [b]; tokens int32 [s].
    """
    with kernel(__name__) as k:
        b, s = k.rows_var(), k.rows_var()
        probs, names = k.tensor((b, vocab)), k.tensor((b, vocab), "int32")
        shares = k.tensor((s,))
        rows = k.tensor((s,), "int32")
        top_p = k.tensor((b,))
        tokens = k.tensor((s,), "int32")
        with launch((s,), (tiles.items,)) as ((sample,), (item,)):
            row = T.bind(rows[sample])
            sums = _RunningSums(tiles, item, vocab, lambda i: probs[row, i])
            enough = _enough(top_p[row])
            _, kept = sums.first(lambda value: value >= enough)
            wanted = T.bind(shares[sample] * kept)
            place, _ = sums.first(lambda value: T.Or(value > wanted, value >= kept))
            with when(item == 0):
                T.buffer_store(tokens, names[row, place], [sample])
    return k.func


@factory
def take_probs(vocab: int) -> tvm.tirx.PrimFunc:
    """Probabilities of chosen tokens, and tokens by their rank.

    Parameters: probs f32 [b, vocab]; names int32 [b, vocab]: tokens in falling order of probability; rows int32 [s],
    tokens int32 [s]: chosen; offsets int32 [m]: row * vocab + rank; chosen f32 [s]; ranked_probs f32 [m]; ranked
    int32 [m].
    """
    with kernel(__name__) as k:
        b, s, m = (k.rows_var() for _ in range(3))
        probs, names = k.tensor((b, vocab)), k.tensor((b, vocab), "int32")
        rows, tokens = k.tensor((s,), "int32"), k.tensor((s,), "int32")
        offsets = k.tensor((m,), "int32")
        chosen, ranked_probs, ranked = k.tensor((s,)), k.tensor((m,)), k.tensor((m,), "int32")
        with launch((ceil_div(s, LANES),), (LANES,)) as ((part,), (lane,)):
            i = T.bind(part * LANES + lane)
            with when(i < s):
                T.buffer_store(chosen, probs[rows[i], tokens[i]], [i])
        with launch((ceil_div(m, LANES),), (LANES,)) as ((part,), (lane,)):
            i = T.bind(part * LANES + lane)
            with when(i < m):
                row = T.bind(T.truncdiv(offsets[i], vocab))
                token = T.bind(names[row, T.truncmod(offsets[i], vocab)])
                T.buffer_store(ranked, token, [i])
                T.buffer_store(ranked_probs, probs[row, token], [i])
    return k.func


@factory
def renormalize_top_p(tiles: GpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """Each row's most likely tokens, as few of them as reach ``top_p`` together and those as likely as the last one,
    divided by their sum; 0 for the others. The bits of the smallest probability kept are found two at a time.

    Parameters: probs f32 [b, vocab]; top_p f32 [b]; result f32 [b, vocab].
    """
    with kernel(__name__) as k:
        b = k.rows_var()
        probs = k.tensor((b, vocab))
        top_p = k.tensor((b,))
        result = k.tensor((b, vocab))

        with launch((b,), (tiles.items,)) as ((row,), (item,)):
            enough, pivot = _enough(top_p[row]), Local(1, 0, "int32")

            def sums(*bounds: Any) -> list[Any]:
                """Of the probabilities whose bits are at least each of ``bounds``. Contains barriers."""
                found = Local(len(bounds), 0.0)

                def add(i: Any) -> None:
                    value = T.bind(probs[row, i])
                    for place, bound in enumerate(bounds):
                        found.add(place, T.Select(_bits(value) >= bound, value, T.float32(0)))

                strided(item, vocab, tiles.items, add)
                return total(item, tiles.items, *(found[place] for place in range(len(bounds))))

            with T.serial(0, _PIVOT_BITS // 2) as turn:
                one = T.bind(T.shift_left(T.int32(1), _PIVOT_BITS - 2 - 2 * turn))
                bounds = [T.bind(pivot[0] + one * step) for step in (1, 2, 3)]
                for value in sums(*bounds):
                    pivot.add(0, T.Select(value >= enough, one, T.int32(0)))
                barrier()  # everyone has read the sums, whose memory the next turn uses
            (kept,) = sums(pivot[0])

            def write(i: Any) -> None:
                value = T.bind(probs[row, i])
                T.buffer_store(result, T.Select(_bits(value) >= pivot[0], value / kept, T.float32(0)), [row, i])

            strided(item, vocab, tiles.items, write)
    return k.func


@factory
def verify_drafts(tiles: GpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """Walk down token trees from their roots: a child is accepted with probability p / q of its token, p being the
    model's probability after its parent and q the draft's; if it is not, p becomes max(p - q, 0) over its sum, and the
    next child is tried.

    Parameters: probs f32 [n, vocab], the model's after each node, changed where children were refused; nodes
    int32 [trees]: roots, at last the nodes accepted last; draft_probs f32 [n, vocab], those that each node was drawn
    from; tokens, first_child, next_sibling int32 [n]: -1 for none; shares f32 [n], from 0 to below 1. A work-group
    takes a tree.
    """
    with kernel(__name__) as k:
        n, trees = k.rows_var(), k.rows_var()
        probs = k.tensor((n, vocab))
        nodes = k.tensor((trees,), "int32")
        draft_probs = k.tensor((n, vocab))
        tokens, first_child, next_sibling = (k.tensor((n,), "int32") for _ in range(3))
        shares = k.tensor((n,))

        with launch((trees,), (tiles.items,)) as ((tree,), (item,)):
            node, child = Local(1, nodes[tree], "int32"), Local(1, dtype="int32")
            child.set(0, first_child[node[0]])
            drawn = shared((1,))
            with T.serial(0, n):  # no tree has more children; behind the last one nothing is left to do
                trying = T.bind(child[0] >= 0)
                tried = T.bind(T.max(child[0], 0))
                token = T.bind(tokens[tried])
                with when(item == T.truncmod(token, tiles.items)):  # who wrote the probability, if anyone did
                    T.buffer_store(drawn, probs[node[0], token], [0])
                barrier()
                likely = T.bind(drawn[0])
                refused = T.bind(T.And(trying, likely < shares[tried] * draft_probs[tried, token]))

                def rest(i: Any) -> Any:
                    return T.max(probs[node[0], i] - draft_probs[tried, i], T.float32(0))

                def elements(condition: Any) -> Any:
                    return T.bind(T.Select(condition, T.int32(vocab), T.int32(0)))

                mass = Local(1, 0.0)
                strided(item, elements(refused), tiles.items, lambda i: mass.add(0, rest(i)))
                (whole,) = total(item, tiles.items, mass[0])
                left = T.bind(T.And(refused, whole >= T.float32(_NO_MASS)))
                strided(item, elements(left), tiles.items,
                        lambda i: T.buffer_store(probs, rest(i) / whole, [node[0], i]))
                with when(trying):
                    child.set(0, T.if_then_else(left, next_sibling[tried], first_child[tried]))
                    node.set(0, T.Select(left, node[0], tried))
                barrier()  # everyone has read what the group shares
            with when(item == 0):
                T.buffer_store(nodes, node[0], [tree])
    return k.func


class _RunningSums:
    """The sums of a row up to each of its elements. Every work-item adds a piece of the row up, all of them look for
    elements then. Contains a barrier."""

    def __init__(self, tiles: GpuTiles, item: Any, vocab: int, element: Callable[[Any], Any]) -> None:
        self._items, self._piece = tiles.items, ceil_div(vocab, tiles.items)
        self._element = lambda i: T.if_then_else(i < vocab, element(i), T.float32(0))
        self._pieces, own = shared((tiles.items,)), Local(1, 0.0)
        with T.serial(0, self._piece) as i:
            own.add(0, self._element(item * self._piece + i))
        T.buffer_store(self._pieces, own[0], [item])
        barrier()

    def total(self) -> Any:
        """Of the whole row."""
        found = Local(1, 0.0)
        with T.serial(0, self._items) as piece:
            found.add(0, self._pieces[piece])
        return T.bind(found[0])

    def first(self, passes: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The first element up to which the sum ``passes``, and that sum; the last one that is not 0 if none does."""
        piece, before, _ = self._search(self._items, lambda i: self._pieces[i], T.float32(0), passes)
        start = T.bind(piece * self._piece)
        place, _, sum_there = self._search(self._piece, lambda i: self._element(start + i), before, passes)
        return T.bind(start + place), sum_there

    @staticmethod
    def _search(count: int, element: Callable[[Any], Any], start: Any,
                passes: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
        """As ``first`` among ``count`` elements behind a sum of ``start``; the sums before and with the element."""
        place, found, partial = Local(1, 0, "int32"), Local(1, 0, "int32"), Local(1, 0.0)
        sums = Local(2, start)
        with T.serial(0, count) as i:
            value = T.bind(element(i))
            with when(T.And(found[0] == 0, value > T.float32(0))):
                place.set(0, i)
                sums.set(0, start + partial[0])
                partial.add(0, value)
                sums.set(1, start + partial[0])
                with when(passes(sums[1])):
                    found.set(0, 1)
        return T.bind(place[0]), T.bind(sums[0]), T.bind(sums[1])


def _enough(top_p: Any) -> Any:
    """What sum to reach: of 1 or more, all of a row, however it was rounded."""
    return T.bind(T.Select(top_p < T.float32(1), top_p, T.float32(_NEVER)))


def _bits(value: Any) -> Any:
    return T.reinterpret("int32", value)
