"""The steps of the check that concern choosing tokens on the device: what MLC's sampler does there, against numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from schedules import twins

from ..selftest.cases.sampling import first_children, likely_shares, limits_between
from .engine import EmulatedEngine
from .steps import Wrong

_NMSE = 1e-10  # of probabilities, sums of a vocabulary in float32


class SamplerWalk:
    """``logits`` f32 [5, V]: rows to choose from, in the order of a token tree: a root with two children, and a chain
    of two."""

    FUNCTIONS = ("multinomial_from_uniform", "argsort_probs", "sample_with_top_p", "sampler_take_probs",
                 "renormalize_by_top_p", "sampler_verify_draft_tokens")
    _PARENTS = np.array([-1, 0, 0, -1, 3])

    def __init__(self, mlc: EmulatedEngine, logits: np.ndarray) -> None:
        self._mlc, self._rng = mlc, np.random.default_rng(1)
        self._probs = _softmax(logits, 0.8)
        self._drafted = _softmax(logits + self._rng.standard_normal(logits.shape, np.float32), 0.8)
        self._rows = np.array([0, 0, 1, 2, 4, 3], np.int32)

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Name and function, in order."""
        yield "choose", self._choose
        yield "choose by top p", self._choose_by_top_p
        yield "judge drafts", self._judge

    def _choose(self) -> str:
        shares = likely_shares(self._rng, self._probs[self._rows])
        tokens, _ = self._mlc.call("multinomial_from_uniform", self._probs, shares, self._rows)
        _same(tokens, twins.multinomial(self._probs[self._rows], shares), "multinomial_from_uniform")
        return f"{len(tokens)} tokens of {len(self._probs)} distributions as numpy"

    def _choose_by_top_p(self) -> str:
        """Sort, choose, look up probabilities: of the tokens chosen, and of the first ranks of each row or of none."""
        probs, rows, vocab = self._probs, self._rows, self._probs.shape[1]
        expected = np.argsort(-probs, axis=-1, kind="stable").astype(np.int32)
        (ranked, names), _ = self._mlc.call("argsort_probs", probs)
        _same(names, expected, "argsort_probs")
        _same(ranked, np.take_along_axis(probs, expected, -1), "argsort_probs")
        top_p = limits_between(self._rng, ranked)
        nuclei = np.where(np.arange(vocab)[None] < twins.top_p_sizes(ranked, top_p)[:, None], ranked, 0)[rows]
        shares = likely_shares(self._rng, nuclei)
        tokens, _ = self._mlc.call("sample_with_top_p", ranked, names, shares, rows, top_p)
        _same(tokens, names[rows, twins.multinomial(nuclei, shares)], "sample_with_top_p")
        for ranks in (2, 0):
            offsets = (np.arange(len(probs))[:, None] * vocab + np.arange(ranks)[None]).reshape(-1).astype(np.int32)
            (chosen, top, top_names), _ = self._mlc.call("sampler_take_probs", probs, names, rows, tokens, offsets)
            for found, wanted in ((chosen, probs[rows, tokens]), (top, ranked.reshape(-1)[offsets]),
                                  (top_names, names.reshape(-1)[offsets])):
                _same(found, wanted, "sampler_take_probs")
        return f"{len(tokens)} tokens and their probabilities as numpy, {vocab} sorted"

    def _judge(self) -> str:
        """Cut distributions off, walk down two trees; what is left of refused tokens' distributions is close."""
        top_p = limits_between(self._rng, -np.sort(-self._probs, axis=-1))
        cut, _ = self._mlc.call("renormalize_by_top_p", self._probs, top_p,
                                np.tile(np.array([0.5, 0.02, 0.01], np.float32), (len(top_p), 1)))
        _close(cut, twins.renormalize_top_p(self._probs, top_p), "renormalize_by_top_p")
        count, roots = len(self._PARENTS), np.flatnonzero(self._PARENTS < 0).astype(np.int32)
        children, siblings = first_children(self._PARENTS)
        tokens = twins.multinomial(self._drafted, self._rng.random(count, np.float32))
        tokens[2:] = self._drafted[2:].argmax(-1)
        shares = np.array([0, 0.999, 0.999, 0, 0], np.float32)  # the chain is accepted, whatever was drawn
        after, nodes = twins.verify_drafts(self._probs, roots, self._drafted, tokens, children, siblings, shares)
        _, (_, _, changed, *_, ends) = self._mlc.call("sampler_verify_draft_tokens", self._drafted, tokens,
                                                      self._probs, children, siblings, shares, roots)
        _same(ends, nodes, "sampler_verify_draft_tokens")
        _close(changed, after, "sampler_verify_draft_tokens")
        return f"{(nodes != roots).sum()} of {len(roots)} trees accepted beyond their roots, as numpy"


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    return twins.softmax_with_temperature(logits, np.full(len(logits), temperature)).astype(np.float32)


def _same(found: np.ndarray, expected: np.ndarray, function: str) -> None:
    if not np.array_equal(found, expected):
        raise Wrong(f"{function}: {found.reshape(-1)[:4]} instead of {expected.reshape(-1)[:4]}")


def _close(found: np.ndarray, expected: np.ndarray, function: str) -> None:
    error = float(((found - expected)**2).sum() / (expected**2).sum())
    if not error <= _NMSE:
        raise Wrong(f"{function}: NMSE {error:.2g}, allowed is {_NMSE:.2g}")
