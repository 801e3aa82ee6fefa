"""What a step of speculative decoding costs, by the number of nodes verified and of levels drafted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .artifact import MASK_BITS
from .tree import TreeShape

NODES = (1, 2, 4, 8, 16, 32, 48, 64)


@dataclass(frozen=True)
class CostTable:
    """``seconds[i]``: a pass over ``nodes[i]`` nodes, for ascending ``nodes`` from 1 on (1: a plain decoding step), and
    choosing its tokens. ``draft_seconds[d - 1]``: drafting d levels; empty where ``seconds`` hold the drafting too.
    ``try_seconds``: what asking the drafter takes when nothing of the tree is verified, beside its levels."""

    nodes: tuple[int, ...]
    seconds: tuple[float, ...]
    draft_seconds: tuple[float, ...] = ()
    try_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for anything but positive times of ascending numbers of nodes."""
        times = (*self.seconds, *self.draft_seconds)
        tried = self.try_seconds
        if not (len(self.nodes) == len(self.seconds) > 0 and self.nodes[0] == 1 and self.nodes[-1] <= MASK_BITS
                and all(a < b for a, b in zip(self.nodes, self.nodes[1:]))
                and all(math.isfinite(time) and time > 0 for time in times) and 0 <= tried < math.inf):
            raise ValueError(f"expected positive seconds for ascending numbers of nodes from 1 to {MASK_BITS}, "
                             f"found {self}")

    @cached_property
    def by_nodes(self) -> tuple[float, ...]:
        """Seconds of a pass over 0 (never used), 1, 2, ... nodes; between the measured numbers they lie on lines."""
        return tuple(np.interp(range(self.nodes[-1] + 1), self.nodes, self.seconds).tolist())

    def drafting(self, depth: int) -> float:
        """Seconds of drafting ``depth`` levels; beyond the deepest one measured every level costs as much as it did
        on average."""
        if not self.draft_seconds or depth == 0:
            return 0.0
        known = len(self.draft_seconds)
        return self.draft_seconds[min(depth, known) - 1] * max(1.0, depth / known)

    def seconds_for(self, shape: TreeShape) -> float:
        """Seconds to draft and verify a full tree of this shape. Raises ValueError beyond the table."""
        if shape.size > self.nodes[-1]:
            raise ValueError(f"the cost table ends at {self.nodes[-1]} nodes, found {shape}")
        return self.by_nodes[shape.size] + (self.drafting(shape.depth) if shape.size > 1 else 0.0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CostTable:
        """Raises ValueError for anything but the fields."""
        try:
            return cls(*(tuple(number(value) for value in values[name])
                         for name, number in (("nodes", int), ("seconds", float), ("draft_seconds", float))),
                       float(values["try_seconds"]))
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not a cost table ({type(error).__name__}: {error})") from None
