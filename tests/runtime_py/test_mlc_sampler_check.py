"""The check of choosing tokens on a device finds what is wrong there."""

import numpy as np
import pytest

from runtime_py.mlc.sampler_check import SamplerWalk
from runtime_py.mlc.steps import attempt
from schedules import twins


class NumpySampler:
    """MLC's functions in numpy; ``wrong``: the one whose first number is another."""

    def __init__(self, wrong=None):
        self._wrong = wrong

    def call(self, name, *arrays):
        results = getattr(self, name)(*arrays)
        if name == self._wrong:
            results[0].reshape(-1)[0] += 1
        if name == "sampler_verify_draft_tokens":
            return None, [*arrays[:2], results[0], *arrays[3:6], results[1]]
        return results[0] if len(results) == 1 else results, list(arrays)

    @staticmethod
    def multinomial_from_uniform(probs, shares, rows):
        return [twins.multinomial(probs[rows], shares)]

    @staticmethod
    def argsort_probs(probs):
        order = np.argsort(-probs, axis=-1, kind="stable").astype(np.int32)
        return [np.take_along_axis(probs, order, -1), order]

    @staticmethod
    def sample_with_top_p(probs, names, shares, rows, top_p):
        kept = np.arange(probs.shape[1]) < twins.top_p_sizes(probs, top_p)[:, None]
        return [names[rows, twins.multinomial(np.where(kept, probs, 0)[rows], shares)]]

    @staticmethod
    def sampler_take_probs(probs, names, rows, tokens, offsets):
        ranked = names.reshape(-1)[offsets]
        return [probs[rows, tokens], probs[offsets // probs.shape[1], ranked], ranked]

    @staticmethod
    def renormalize_by_top_p(probs, top_p, pivots):
        return [twins.renormalize_top_p(probs, top_p)]

    @staticmethod
    def sampler_verify_draft_tokens(draft_probs, tokens, probs, children, siblings, shares, roots):
        return list(twins.verify_drafts(probs, roots, draft_probs, tokens, children, siblings, shares))


def steps(wrong=None):
    walk = SamplerWalk(NumpySampler(wrong), np.random.default_rng(0).standard_normal((5, 300), np.float32))
    return {name: attempt(name, function) for name, function in walk.steps()}


def test_all_is_well():
    assert [(step.name, step.ok) for step in steps().values()] == [
        ("choose", True), ("choose by top p", True), ("judge drafts", True)]


@pytest.mark.parametrize("function", SamplerWalk.FUNCTIONS)
def test_a_wrong_number_is_found(function):
    (failed,) = (step for step in steps(function).values() if not step.ok)
    assert failed.detail.startswith(function)
