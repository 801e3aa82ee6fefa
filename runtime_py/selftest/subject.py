"""A kernel under test: what it was made with, the artifact's weights that it takes, random inputs."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError
from schedules import activations
from schedules.q4 import unpacked

from .bounds import Bound, Written


class Arguments(SimpleNamespace):
    """The arguments of a kernel's factory, as kernels.json lists them."""

    def __getattr__(self, name: str) -> Any:
        raise UserError(f"kernels.json: expected argument {name!r} among those of a kernel, found "
                        f"{', '.join(vars(self))}; the artifact is of another version of this project: rebuild it with "
                        "build.py")


class Subject:
    """``p``: the arguments of the kernel's factory. ``inputs``: of each of its inputs the weight's name or None;
    ``weights``: the artifact's, as stored."""

    def __init__(self, arguments: dict[str, Any], inputs: tuple[str | None, ...], weights: Mapping[str, np.ndarray],
                 seed: int) -> None:
        self.p = Arguments(**arguments)
        self.rng = np.random.default_rng(seed)
        self._inputs, self._weights = inputs, weights
        self._matrices: dict[int, np.ndarray] = {}

    @property
    def weight_names(self) -> list[str]:
        """The weights that it is tried with."""
        return [name for name in self._inputs if name is not None]

    def stored(self, position: int) -> np.ndarray:
        """The weight that is the kernel's argument number ``position``."""
        return self._weights[self._inputs[position]]

    def matrix(self, position: int, weight_format: str, outputs: int, inputs: int) -> np.ndarray:
        """Such a weight [..., outputs, inputs] as float32 or float16."""
        if position not in self._matrices:
            self._matrices[position] = unpacked(self.stored(position), weight_format, outputs, inputs)
        return self._matrices[position]

    def normal(self, *shape: int, dtype: str = "float32") -> np.ndarray:
        """Standard normal numbers."""
        return self.rng.standard_normal(shape, np.float32).astype(dtype)

    def integers(self, limit: int, count: int) -> np.ndarray:
        """int32 [count] below ``limit``; the first is 0, the second the largest."""
        numbers = self.rng.integers(0, limit, count, np.int32)
        numbers[:2] = (0, limit - 1)[:count]
        return numbers

    def rows(self, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Random activations [..., width] as kernels hand them on, and the values that they stand for."""
        records = activations.encode(self.normal(*shape), self.p.activations)
        return records, activations.decode(records, self.p.activations, shape[-1])

    def scores(self, tokens: int, share: float) -> np.ndarray:
        """Router scores float32 [tokens, experts], about ``share`` of them active, of either sign."""
        scores = self.normal(tokens, self.p.experts)
        scores[self.rng.random(scores.shape) >= share] = 0.0
        return scores


def written_rows(expected: np.ndarray, mode: str, bound: Bound, mask: np.ndarray | None = None,
                 outer: tuple[int, ...] | None = None) -> Written:
    """Activations [..., width] in the format ``mode``; ``outer``: the leading extents where there is a ``mask``."""
    shape, dtype = activations.activation_shape(mode, (*(outer or expected.shape[:-1]), expected.shape[-1]))
    return Written(shape, dtype, expected, bound, mask, activations=mode)


def written(expected: np.ndarray, bound: Bound) -> Written:
    """A float32 result."""
    return Written(expected.shape, "float32", expected, bound)


def same(expected: np.ndarray) -> Written:
    """A result of which every bit is known."""
    return Written(expected.shape, expected.dtype.name, expected)


def poisoned_experts(stored: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """A copy of the experts' weights in which those of ``experts`` (bool) are NaN; 4-bit ones have NaN for scales."""
    copy = stored.copy()
    copy[experts] = np.nan if copy.dtype.kind == "f" else 0xFFFDFFFD
    return copy
