"""From logits to the next token, in the order of Hugging Face's processors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from blockffn_mlc.errors import UserError

from .devices.logits import Row


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


def distribution(logits: np.ndarray, sampling: Sampling, history: Iterable[int] = ()) -> np.ndarray:
    """Next-token probabilities, float64 [V], from logits float32 [V]; ``history`` is what the penalty counts.

    Greedy gives the one-hot distribution of the lowest token with the largest logit. Raises UserError when
    the largest logit is not finite.
    """
    scores = _penalised(logits, sampling.repetition_penalty, history)
    top = _most_likely(scores, sampling)
    if sampling.greedy:
        probs = np.zeros(len(scores))
        probs[top] = 1
        return probs
    with np.errstate(over="ignore"):  # the largest is 0; far smaller ones may become -inf
        scores = np.subtract(scores, scores[top], dtype=np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        kth = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores[scores < kth] = -np.inf  # tokens as likely as the k-th stay
    probs = np.exp(scores)
    probs /= probs.sum()
    if sampling.top_p < 1:
        probs = np.where(_nucleus(probs, sampling.top_p), probs, 0)
        probs /= probs.sum()
    return probs


class Sampler:
    """Draws tokens under one Sampling; keeps the random state."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def __call__(self, logits: np.ndarray | Row, history: Iterable[int] = ()) -> int:
        """The next token for logits float32 [V]: one uniform number, looked up in the cumulative distribution."""
        if isinstance(logits, Row):
            if self.sampling.greedy and self.sampling.repetition_penalty == 1 and logits.most_likely is not None:
                return logits.most_likely
            logits = np.asarray(logits)
        if self.sampling.greedy:
            return _most_likely(_penalised(logits, self.sampling.repetition_penalty, history), self.sampling)
        cumulative = np.cumsum(distribution(logits, self.sampling, history))
        # Scaled by the last sum, so that a draw never lands behind the last possible token.
        return int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))


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


def _nucleus(probs: np.ndarray, top_p: float) -> np.ndarray:
    """Mask of the smallest set of most likely tokens whose probabilities reach top_p; lower ids win ties."""
    descending = np.sort(probs)[::-1]
    count = int(np.searchsorted(np.cumsum(descending), top_p)) + 1
    cutoff = descending[min(count, len(probs)) - 1]
    keep = probs > cutoff
    ties = np.flatnonzero(probs == cutoff)
    keep[ties[:count - int(keep.sum())]] = True
    return keep
