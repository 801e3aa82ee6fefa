"""From logits to the next token, in the order of Hugging Face's processors."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import NoReturn

import numpy as np

from blockffn_mlc.errors import UserError

from .accept_kernel import AcceptKernel
from .artifact import MASK_BITS
from .devices.logits import Logits, Row
from .tree import Tree
from .verification import accept


@dataclass(frozen=True)
class Sampling:
    """Repetition penalty, then temperature, top-k, top-p. Temperature 0 takes the most likely token.

    ``top_k`` 0 and ``top_p`` 1 switch the two off. A seed makes the draws repeatable.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for field_, ok, expected in (
            ("temperature", 0 <= self.temperature < np.inf, "a number from 0 (greedy) up"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0, at most 1"),
            ("top_k", self.top_k >= 0, "an integer from 0 (off) up"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "a number above 0"),
            ("seed", self.seed is None or self.seed >= 0, "an integer from 0 up"),
        ):
            if not ok:
                raise UserError(f"{field_}: expected {expected}, found {getattr(self, field_)}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))


GREEDY = Sampling()
_COLDEST = 1e-200  # a lower temperature chooses the same tokens, but its quotients overflow
_COLDEST_KERNEL = 1e-30  # likewise, where they are float32
_NARROWEST_KERNEL = 1e-30  # a lower top-p keeps the same token, but is 0 in float32
_NO_LIMIT = 2**31 - 1
_NOTHING = array("i")
_ZEROS = [0.0] * MASK_BITS
_NO_STOP: AbstractSet[int] = frozenset()
_AHEAD = 256  # random numbers made at once, more than a tree may have nodes


def distribution(logits: np.ndarray, sampling: Sampling, history: Iterable[int] = ()) -> np.ndarray:
    """Next-token probabilities, float64 [V], from logits float32 [V]; ``history`` is what the penalty counts.

    Greedy gives the one-hot distribution of the lowest token with the largest logit. Raises UserError when
    the largest logit is not finite.
    """
    weights = _weights(logits, sampling, history)
    return weights / weights.sum()


class Sampler:
    """Draws tokens under one Sampling; keeps the random state. ``kernel``: takes over where a session has one; all
    logits are arrays then."""

    def __init__(self, sampling: Sampling, kernel: AcceptKernel | None = None) -> None:
        self.sampling = sampling
        self._penalises = sampling.repetition_penalty != 1
        self._greedy = sampling.greedy
        self._takes_largest = sampling.greedy and not self._penalises
        self._kernel = kernel
        inverse = 0.0 if sampling.greedy else 1 / max(sampling.temperature, _COLDEST_KERNEL)
        penalty = min(max(sampling.repetition_penalty, _COLDEST_KERNEL), 1 / _COLDEST_KERNEL)
        self._settings = [inverse, min(sampling.top_k, _NO_LIMIT), max(sampling.top_p, _NARROWEST_KERNEL), penalty]
        self._rng = np.random.default_rng(sampling.seed)
        self._uniforms: list[float] = []
        self._used = 0

    def __call__(self, logits: np.ndarray | Row, history: Iterable[int] = ()) -> int:
        """The next token for logits float32 [V]: one uniform number, looked up in the cumulative distribution."""
        if self._kernel and not self._takes_largest:
            return self._draw(logits, history)
        if isinstance(logits, Row):
            if self._takes_largest and logits.most_likely is not None:
                return logits.most_likely
            logits = np.asarray(logits)
        if self._takes_largest:
            return _most_likely(logits, self.sampling)
        cumulative = np.cumsum(_weights(logits, self.sampling, history))
        draw = self._uniforms_ahead(1)[0]
        self._used += 1
        # Scaled by the last sum, so that a draw never lands behind the last possible token.
        return int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))

    def accept(self, tree: Tree, logits: np.ndarray | Logits, history: Sequence[int] = (),
               stop_ids: AbstractSet[int] = _NO_STOP) -> tuple[list[int], list[int]]:
        """``verification.accept`` with this sampler."""
        if self._kernel is None:
            return accept(tree, logits, self, history, stop_ids)
        n, seen = len(tree.tokens), self._seen(history) if self._penalises else _NOTHING
        found = self._kernel(logits, seen, *self._settings, len(seen), *tree.parents, *tree.tokens,
                             *self._uniforms_ahead(n))
        path = found[:found.index(-1, 0, n)] if found[n - 1] < 0 else found[:n]
        drawn = found[n:n + len(path)]
        if not stop_ids.isdisjoint(drawn):
            end = next(i for i, token in enumerate(drawn, 1) if token in stop_ids)
            path, drawn = path[:end], drawn[:end]
        if drawn[-1] < 0:
            self._refuse(logits[path[-1]], [*seen, *tree.tokens[:1], *drawn])
        self._used += len(drawn)
        return path, drawn

    def _draw(self, logits: np.ndarray, history: Iterable[int]) -> int:
        """The kernel's choice: a tree of nothing but a root, which ``history`` holds."""
        seen = self._seen(history) if self._penalises else _NOTHING
        token = self._kernel(logits, seen, *self._settings, len(seen), -1, -1, *self._uniforms_ahead(1))[1]
        if token < 0:
            self._refuse(logits, seen)
        self._used += 1
        return token

    @staticmethod
    def _seen(history: Iterable[int]) -> array[int]:
        return history if isinstance(history, array) else array("i", history)

    def _refuse(self, logits: np.ndarray, seen: Sequence[int]) -> NoReturn:
        """Raises UserError: the largest of these logits is not finite."""
        with np.errstate(all="ignore"):
            scores = _penalised(logits, self._settings[3], [token for token in seen if token >= 0])
            _most_likely(scores.astype(np.float32), self.sampling)
        raise AssertionError("the kernel found logits not finite that numpy finds finite")

    def _uniforms_ahead(self, count: int) -> list[float]:
        """The next numbers from 0 up to 1, of which ``_used`` counts those that were used; greedy choices have no use
        for them."""
        if self._greedy:
            return _ZEROS[:count]
        if self._used + count > len(self._uniforms):
            self._uniforms = self._uniforms[self._used:] + self._rng.random(_AHEAD).tolist()
            self._used = 0
        return self._uniforms[self._used:self._used + count]


def _weights(logits: np.ndarray, sampling: Sampling, history: Iterable[int]) -> np.ndarray:
    """What probabilities are in proportion to, float64 [V]."""
    scores = _penalised(logits, sampling.repetition_penalty, history)
    top = _most_likely(scores, sampling)
    if sampling.greedy:
        weights = np.zeros(len(scores))
        weights[top] = 1
        return weights
    weights = np.subtract(scores, scores[top], dtype=np.float64)
    weights /= max(sampling.temperature, _COLDEST)
    if 0 < sampling.top_k < len(weights):
        kth = np.partition(weights, -sampling.top_k)[-sampling.top_k]
        weights[weights < kth] = -np.inf  # tokens as likely as the k-th stay
    np.exp(weights, out=weights)
    return _nucleus(weights, sampling.top_p) if sampling.top_p < 1 else weights


def _penalised(logits: np.ndarray, penalty: float, history: Iterable[int]) -> np.ndarray:
    """``logits`` themselves without a penalty, else a float64 copy."""
    scores = logits
    if penalty != 1:
        scores = logits.astype(np.float64)
        seen = np.fromiter(set(history), np.int64)
        with np.errstate(over="ignore"):
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def _most_likely(scores: np.ndarray, sampling: Sampling) -> int:
    """The lowest token with the largest score; that is finite. One pass: a NaN counts as the largest."""
    top = int(scores.argmax())
    if not math.isfinite(scores[top]):
        raise UserError(f"the largest logit is {scores[top]}: no token can be chosen; the weights are damaged, or the "
                        f"repetition penalty of {sampling.repetition_penalty} is too extreme")
    return top


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """``weights`` of the smallest set of most likely tokens that holds ``top_p`` of the whole, 0 for the others; lower
    ids win ties."""
    total = weights.sum()
    # The others, V at most, have no more than half of 1 - top_p between them: few are left to be sorted.
    likely = np.flatnonzero(weights > total * (1 - top_p) / (2 * len(weights)))
    likely = likely[np.argsort(-weights[likely], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[likely]), total * top_p)) + 1
    kept = np.zeros_like(weights)
    kept[likely[:count]] = weights[likely[:count]]
    return kept
