"""Choosing tokens from logits and keeping what they accept of a token tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import choose, factory, kernel, when
from ..tiles import CpuTiles
from .vector import Read, Register, const, exp, for_lanes, load, span, splat, store, sum_over, vector

_INVERSE_TEMPERATURE, _TOP_K, _TOP_P, _PENALTY, _SEEN, _SETTINGS = range(6)
_NODE, _TOKEN = range(2)
_INFINITE = 0x7F800000  # bits of inf; those of a NaN, without its sign, are larger
_MAGNITUDE = 0x7FFFFFFF  # all bits but the sign
_LOWEST_KEY = -1 << 31
_SMALLEST = -87.0  # e to less than this is 0
_AT_ONCE = 4  # vectors, whose results do not wait for each other
_BLOCK = 64  # weights that are summed before a draw is looked up among them


@factory
def accept(tiles: CpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """From the root of a token tree on, draw the next token from the logits of the node and go on at the first child
    that carries it, until none does (``runtime_py.verification.accept`` has the rule and its source).

    Logits of tokens that the text holds already, drawn ones and the root included, are first divided by the repetition
    penalty where they are positive, and multiplied by it where not. A token's weight is exp((logit - largest) * inverse
    temperature) where it is one of the ``top k`` largest logits (or equal to the last of them; 0: all are) and of the
    smallest set of most likely tokens that has ``top p`` of the weights of these (of equal ones the lower first). The
    draw is the first token for which the weights up to it are together more than uniform * all weights. An inverse
    temperature of 0 takes the lowest token with the largest logit.

    Parameters: logits f32 [n, vocab]; text int32 [c]; asked f64 [5 + 3 n], in one tensor since every further one costs
    the caller more than the draw: inverse temperature, top k, top p, repetition penalty, number of tokens in the text,
    then of the n nodes the parents (of the root, the first: -1), the tokens (of the root: -1 where the text holds it),
    and the uniform numbers, one for each token that is drawn; accepted int32 [2, n]: the nodes in order and the tokens
    drawn there, then -1. A token is -1 where the largest logit is not finite: NaN, which counts as larger than all
    numbers, or infinite.
    """
    with kernel(__name__) as k:
        n, capacity = k.rows_var(), k.rows_var()
        logits = k.tensor((n, vocab))
        text = k.tensor((capacity,), "int32")
        asked = k.tensor((_SETTINGS + 3 * n,), "float64")
        accepted = k.tensor((2, n), "int32")
        node, token = Register(1, 0, "int32"), Register(1, -1, "int32")
        draw = _Draw(tiles, vocab)

        with T.serial(0, n) as step:
            T.buffer_store(accepted, node.get(), [_NODE, step])
            token.set(T.int32(-1))
            with when(node.get() >= 0):
                row = T.bind(T.cast(node.get(), "int64"))
                draw.read(lambda i, lanes: load(logits, row, i, lanes=lanes))
                penalty = T.bind(T.cast(asked[_PENALTY], "float32"))
                with T.serial(0, T.cast(asked[_SEEN], "int64")) as i:
                    draw.penalise(text[i], logits[row, text[i]], penalty)
                root = T.bind(T.cast(asked[_SETTINGS + n], "int32"))
                with when(root >= 0):
                    draw.penalise(root, logits[row, root], penalty)
                with T.serial(0, step) as i:
                    drawn = T.bind(accepted[_TOKEN, i])
                    draw.penalise(drawn, logits[row, drawn], penalty)
                draw.rank()
                with when(draw.finite()):
                    choose(asked[_INVERSE_TEMPERATURE] == T.float64(0), lambda: token.set(draw.most_likely()),
                           lambda: token.set(draw.sample(asked, asked[_SETTINGS + 2 * n + step])))
            T.buffer_store(accepted, token.get(), [_TOKEN, step])
            child = Register(1, -1, "int32")
            with T.serial(0, n) as i:
                other = T.bind(n - 1 - i)  # the first one is set last
                parent, carried = (T.cast(asked[_SETTINGS + at + other], "int32") for at in (0, n))
                with when(T.And(parent == node.get(), carried == token.get())):
                    child.set(T.cast(other, "int32"))
            node.set(child.get())
    return k.func


class _Draw:
    """One draw from a row of logits."""

    def __init__(self, tiles: CpuTiles, vocab: int) -> None:
        self._lanes, self._vocab = tiles.lanes, vocab
        self._row = T.alloc_buffer((vocab,), "float32")
        self._weights = T.alloc_buffer((vocab,), "float32")
        self._blocks = -(-vocab // _BLOCK)
        self._sums = T.alloc_buffer((self._blocks,), "float64")  # of all weights up to a block's end
        self._largest = Register(1)
        self._magnitude = Register(1, 0, "int32")

    def read(self, logits: Read) -> None:
        """Begin with a row."""
        for_lanes(self._vocab, self._lanes, lambda i, lanes: store(self._row, logits(i, lanes), i, lanes=lanes))

    def penalise(self, token: Any, logit: Any, penalty: Any) -> None:
        """Make a token less likely that had this logit; it may happen again."""
        T.buffer_store(self._row, T.Select(logit < T.float32(0), logit * penalty, logit / penalty), [token])

    def rank(self) -> None:
        """When the row is complete."""
        self._largest.set(self._fold(T.max, self._logits, -float("inf")))
        self._magnitude.set(self._fold(T.max, self._absolute, 0, "int32"))

    def finite(self) -> Any:
        """Whether the largest logit is."""
        top = T.bitwise_and(T.reinterpret("int32", self._largest.get()), T.int32(_MAGNITUDE))
        return T.And(self._magnitude.get() <= T.int32(_INFINITE), top < T.int32(_INFINITE))

    def most_likely(self) -> Any:
        """The lowest token with the largest logit."""
        def index(i: Any, lanes: int) -> Any:
            is_largest = self._logits(i, lanes) >= splat(self._largest.get(), lanes)
            return T.Select(is_largest, T.cast(span(i, lanes), vector("int32", lanes)),
                            const(self._vocab, lanes, "int32"))

        return self._fold(T.min, index, self._vocab, "int32")

    def sample(self, settings: T.Buffer, uniform: Any) -> Any:
        """A token drawn with a number from 0 up to 1."""
        inverse = Register(1, T.cast(settings[_INVERSE_TEMPERATURE], "float32")).get()
        top_k, top_p = T.bind(T.cast(settings[_TOP_K], "int32")), T.bind(T.cast(settings[_TOP_P], "float32"))
        least = Register(1, _LOWEST_KEY, "int32")
        with when(T.And(top_k > 0, top_k < self._vocab)):
            self._largest_key(least, lambda key: self._count(key) >= top_k)

        def weigh(i: Any, lanes: int) -> None:
            below = self._logits(i, lanes) - splat(self._largest.get(), lanes)
            power = Register(lanes, below * splat(inverse, lanes))
            kept = T.And(power.get() >= splat(_SMALLEST, lanes), self._key(i, lanes) >= splat(least.get(), lanes))
            store(self._weights, T.Select(kept, exp(power.get(), lanes), splat(0.0, lanes)), i, lanes=lanes)

        for_lanes(self._vocab, self._lanes, weigh)
        with when(top_p < T.float32(1)):
            self._cut(top_p)
        return self._look_up(uniform)

    def _cut(self, top_p: Any) -> None:
        """Set the weights outside the nucleus to 0."""
        wanted = Register(1, self._sum_from(T.int32(_LOWEST_KEY)) * top_p).get()
        least = Register(1, _LOWEST_KEY, "int32")
        self._largest_key(least, lambda key: self._sum_from(key) >= wanted)
        # Of those equal to the last one only as many as it takes stay.
        above = Register(1, self._sum_from(least.get() + 1)).get()
        equal = Register(1, self._count(least.get()) - self._count(least.get() + 1), "int32").get()
        each = T.max((Register(1, self._sum_from(least.get())).get() - above) / T.cast(equal, "float32"),
                     T.float32(1e-37))
        stay = Register(1, T.cast(T.ceil(T.min((wanted - above) / each, T.float32(self._vocab))), "int32"), "int32")
        for_lanes(self._vocab, self._lanes, lambda i, lanes: store(self._weights, T.Select(
            self._key(i, lanes) >= splat(least.get(), lanes), self._weight(i, lanes), splat(0.0, lanes)),
            i, lanes=lanes))
        with when(stay.get() < equal), T.serial(0, self._vocab) as i, when(self._key(i, 1) == least.get()):
            with when(stay.get() < 1):
                T.buffer_store(self._weights, T.float32(0), [i])
            stay.set(stay.get() - 1)

    def _look_up(self, uniform: Any) -> Any:
        """The first token whose weight, with those before it, is more than ``uniform`` of all."""
        total = Register(1, 0.0, "float64")

        def add(block: Any, width: int) -> None:
            total.set(total.get() + T.cast(sum_over(width, self._lanes, lambda i, lanes, register: register.set(
                register.get() + self._weight(block * _BLOCK + i, lanes))), "float64"))
            T.buffer_store(self._sums, total.get(), [block])

        whole = self._vocab // _BLOCK
        with T.serial(0, whole) as block:
            add(block, _BLOCK)
        if whole < self._blocks:
            add(T.int64(whole), self._vocab - whole * _BLOCK)
        wanted = Register(1, total.get() * uniform, "float64").get()
        found = Register(1, 0, "int64")
        with T.serial(0, self._blocks - 1) as block, when(self._sums[block] <= wanted):
            found.set(T.cast(block, "int64") + 1)
        block = T.bind(found.get())
        total.set(T.Select(block > 0, self._sums[T.max(block - 1, T.int64(0))], T.float64(0)))
        token, passed = Register(1, 0, "int32"), Register(1, 0, "int32")
        with T.serial(0, _BLOCK) as i:
            place = T.bind(T.min(block * _BLOCK + i, T.int64(self._vocab - 1)))
            weight = T.bind(self._weights[place])
            with when(T.And(passed.get() == 0, weight > T.float32(0))):
                # Where rounding leaves the sum below what is wanted, the last possible one stays.
                token.set(T.cast(place, "int32"))
                total.set(total.get() + T.cast(weight, "float64"))
                passed.set(T.cast(total.get() > wanted, "int32"))
        return token.get()

    def _largest_key(self, found: Register, holds: Callable[[Any], Any]) -> None:
        """Set ``found`` to the largest key for which ``holds``, given that it does for smaller ones, bit by bit."""
        bits = Register(1, 0, "int32")
        with T.serial(0, 32) as i:
            tried = T.bind(T.bitwise_or(bits.get(), T.shift_left(T.int32(1), T.int32(31) - T.cast(i, "int32"))))
            with when(holds(T.bitwise_xor(tried, T.int32(_LOWEST_KEY)))):
                bits.set(tried)
        found.set(T.bitwise_xor(bits.get(), T.int32(_LOWEST_KEY)))

    def _count(self, key: Any) -> Any:
        """Tokens with at least this key."""
        return self._fold(lambda a, b: a + b, lambda i, lanes: T.cast(
            self._key(i, lanes) >= splat(key, lanes), vector("int32", lanes)), 0, "int32")

    def _sum_from(self, key: Any) -> Any:
        """The weights of the tokens with at least this key."""
        return self._fold(lambda a, b: a + b, lambda i, lanes: T.Select(
            self._key(i, lanes) >= splat(key, lanes), self._weight(i, lanes), splat(0.0, lanes)), 0.0)

    def _logits(self, i: Any, lanes: int) -> Any:
        return load(self._row, i, lanes=lanes)

    def _weight(self, i: Any, lanes: int) -> Any:
        return load(self._weights, i, lanes=lanes)

    def _bits(self, i: Any, lanes: int) -> Any:
        return T.reinterpret(vector("int32", lanes), self._logits(i, lanes))

    def _absolute(self, i: Any, lanes: int) -> Any:
        return T.bitwise_and(self._bits(i, lanes), const(_MAGNITUDE, lanes, "int32"))

    def _key(self, i: Any, lanes: int) -> Any:
        """An integer of the logits' order, the same for 0 and -0."""
        bits = self._bits(i, lanes)
        sign = T.shift_right(bits, const(31, lanes, "int32"))
        key = T.bitwise_xor(bits, T.bitwise_and(sign, const(_MAGNITUDE, lanes, "int32")))
        return T.Select(self._logits(i, lanes) == splat(0.0, lanes), const(0, lanes, "int32"), key)

    def _fold(self, combine: Callable[[Any, Any], Any], value: Read, start: float, dtype: str = "float32") -> Any:
        """``combine`` over the row, in an order fixed by its length."""
        lanes = self._lanes
        parts, rest = [Register(lanes, start, dtype) for _ in range(_AT_ONCE)], Register(1, start, dtype)
        together = lanes * _AT_ONCE
        whole = self._vocab // together * together
        with T.serial(0, self._vocab // together) as i:
            for j, part in enumerate(parts):
                part.set(combine(part.get(), value(i * together + j * lanes, lanes)))

        def add(i: Any, width: int) -> None:
            register = parts[0] if width == lanes else rest
            register.set(combine(register.get(), value(whole + i, width)))

        for_lanes(self._vocab - whole, lanes, add)
        for part in parts[1:]:
            parts[0].set(combine(parts[0].get(), part.get()))
        return combine(parts[0].fold(combine), rest.get())
