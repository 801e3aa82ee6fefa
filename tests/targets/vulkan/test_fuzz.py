"""Random expressions on a Vulkan device against this processor: equal bits."""

import numpy as np
import pytest
from tvm import tirx
from tvm.tirx import Select, const, if_then_else
from vulkan_harness import SIZE, Case, compare

# Without int64, of which lavapipe 22.3 miscomputes some combinations: b - max(a, -1) is b - a there.
DTYPES = ("int32", "uint32", "int8", "uint8", "int16", "float32", "float16")
DEPTH = 3
CASES = 2  # of a type
SEEDS = 2
LANES = (1, 1, 2, 4, 8)
SMALL = 5  # leaves are -SMALL to SMALL: no result overflows, and floats are exact, whatever is fused


class Expression:
    """A random expression tree, made anew of the same choices whenever it is called with other arrays."""

    def __init__(self, seed: int, dtype: str) -> None:
        self._seed, self._dtype = seed, dtype

    def __call__(self, a, b, i):
        self._rng, self._inputs, self._index = np.random.default_rng(self._seed), (a, b), i
        return self._value(self._dtype, DEPTH)

    def _value(self, dtype, depth):
        if depth == 0:
            return self._leaf(dtype)
        kinds = ["sum", "select", "branch", "extreme", "cast", "product", "leaf"]
        if not dtype.startswith("float"):
            kinds += ["division", "division", "bits", "shift"]
        kind = kinds[self._rng.integers(len(kinds))]
        if kind == "leaf":
            return self._leaf(dtype)
        x = self._value(dtype, depth - 1)
        if kind == "cast" and not dtype.startswith("uint"):  # of negative floats to unsigned integers: undefined
            return self._value(DTYPES[self._rng.integers(len(DTYPES))], depth - 1).astype(dtype)
        if kind == "shift":
            amount = const(int(self._rng.integers(1, 4)), dtype)
            return tirx.shift_right(x, amount)
        if kind == "division":
            operators = (tirx.floordiv, tirx.floormod, tirx.truncdiv, tirx.truncmod)
            return operators[self._rng.integers(4)](x, self._divisor(dtype))
        y = self._value(dtype, depth - 1)
        if kind == "sum":
            return x + y if dtype.startswith("uint") or self._rng.integers(2) else x - y
        if kind == "extreme":
            return (tirx.min, tirx.max)[self._rng.integers(2)](x, y)
        if kind == "bits":
            return (tirx.bitwise_and, tirx.bitwise_or, tirx.bitwise_xor)[self._rng.integers(3)](x, y)
        if kind == "product":
            return self._wrapped(x, dtype) * self._wrapped(y, dtype)
        return (Select if kind == "select" else if_then_else)(self._condition(depth - 1), x, y)

    def _wrapped(self, x, dtype):
        """A small number again."""
        if dtype.startswith("float"):
            return tirx.max(tirx.min(x, const(SMALL, dtype)), const(-SMALL, dtype))
        return tirx.truncmod(x, const(SMALL, dtype))

    def _condition(self, depth):
        dtype = DTYPES[self._rng.integers(len(DTYPES))]
        x, y = self._value(dtype, depth), self._value(dtype, max(depth - 1, 0))
        comparison = (lambda: x < y, lambda: x >= y, lambda: x == y, lambda: x != y)[self._rng.integers(4)]()
        if self._rng.integers(3):
            return comparison
        other = self._index < int(self._rng.integers(SIZE))
        return (tirx.all, tirx.any)[self._rng.integers(2)](comparison, other)

    def _divisor(self, dtype):
        value = int(self._rng.integers(1, 9))
        return const(-value if self._rng.integers(2) and not dtype.startswith("uint") else value, dtype)

    def _leaf(self, dtype):
        kind = self._rng.integers(4)
        if kind == 0:
            return const(int(self._rng.integers(0 if dtype.startswith("uint") else -SMALL, SMALL)), dtype)
        source = self._inputs[self._rng.integers(2)]
        place = (self._index, SIZE - 1 - self._index, tirx.floormod(self._index * 3 + 1, SIZE))[self._rng.integers(3)]
        value = source(place)
        return tirx.abs(value).astype(dtype) if dtype.startswith("uint") else value.astype(dtype)


def numbers(name, dtype):
    return np.random.default_rng(ord(name)).integers(-SMALL, SMALL, SIZE, endpoint=True).astype(dtype)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_expressions(seed, tmp_path):
    rng = np.random.default_rng(seed)
    groups = {source: [Case(f"{dtype} of {source}, {number}", source, Expression(int(rng.integers(2**32)), dtype),
                            dtype, int(rng.choice(LANES))) for dtype in DTYPES for number in range(CASES)]
              for source in ("int8", "int32", "float32")}
    assert not compare(groups, tmp_path, numbers)
