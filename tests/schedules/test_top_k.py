"""The most likely tokens and their log-probabilities."""

import numpy as np
import pytest
from harness import EXACT, Out, nmse, normal, run, same_bits

from schedules import cpu, twins

ROWS = (1, 2, 3, 17, 33)


@pytest.mark.parametrize("vocab, k", [(1, 1), (5, 5), (128, 10), (300, 10), (2048, 3), (16384, 10)])
@pytest.mark.parametrize("mapped", [False, True])
def test_top_k(target, rng, vocab, k, mapped):
    func = cpu.top_k(target.tiles, vocab, k, mapped=mapped)
    logits = normal(rng, ROWS[-1], vocab) * 3
    logits[1] = np.sort(logits[1])  # the list changes with every logit
    logits[2] = np.round(logits[2])  # many are equal
    logits[3] = -2.5
    token_ids = [rng.permutation(vocab).astype("int32") * 3] if mapped else []
    tokens, log_probs = run(func, target, logits, *token_ids, Out((ROWS[-1], k), "int32"), Out((ROWS[-1], k)))
    expected = twins.top_k(logits, k, *token_ids)
    assert np.array_equal(tokens, expected[0])
    assert nmse(log_probs, expected[1]) <= EXACT or np.abs(log_probs - expected[1]).max() <= 1e-6
    for rows in ROWS:
        found = run(func, target, logits[:rows], *token_ids, Out((rows, k), "int32"), Out((rows, k)))
        assert all(same_bits(a, b[:rows]) for a, b in zip(found, (tokens, log_probs))), rows


def test_a_certain_token_has_probability_one(target):
    logits = np.full((1, 300), -80.0, np.float32)
    logits[0, 123] = 80.0
    tokens, log_probs = run(cpu.top_k(target.tiles, 300, 2), target, logits, Out((1, 2), "int32"), Out((1, 2)))
    assert tokens.tolist() == [[123, 0]] and log_probs[0, 0] == 0.0 and log_probs[0, 1] == -160.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_damaged_logits_still_name_tokens_of_the_list(target, value):
    """Whatever the weights hold, no index leaves the vocabulary."""
    logits = np.full((2, 300), value, np.float32)
    token_ids = np.arange(1000, 1300, dtype="int32")
    tokens, _ = run(cpu.top_k(target.tiles, 300, 4, mapped=True), target, logits, token_ids, Out((2, 4), "int32"),
                    Out((2, 4), partial=True))
    assert np.isin(tokens, token_ids).all()
