"""Sampling against brute force written from Hugging Face's definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockffn_mlc.errors import UserError
from runtime_py.sampling import GREEDY, Sampler, Sampling, distribution

LOGITS = st.lists(st.integers(-20, 20).map(lambda i: i / 4), min_size=1, max_size=24)


def brute_force(logits, sampling, history):
    """Repetition penalty, temperature, top-k, top-p, softmax; one token at a time."""
    scores = [float(x) for x in logits]
    for token in set(history):
        scores[token] = scores[token] * sampling.repetition_penalty if scores[token] < 0 \
            else scores[token] / sampling.repetition_penalty
    scores = [score / sampling.temperature for score in scores]
    if sampling.top_k:
        kth = sorted(scores, reverse=True)[min(sampling.top_k, len(scores)) - 1]
        scores = [score if score >= kth else -np.inf for score in scores]
    weights = [np.exp(score - max(scores)) for score in scores]
    probs = [weight / sum(weights) for weight in weights]
    kept, total = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda i: (-probs[i], i)):
        if total < sampling.top_p or sampling.top_p == 1:
            kept.add(token)
            total += probs[token]
    probs = [p if i in kept else 0.0 for i, p in enumerate(probs)]
    return np.array(probs) / sum(probs)


@settings(deadline=None, max_examples=300)
@given(LOGITS, st.floats(0.3, 2), st.sampled_from([0.013, 0.333, 0.717, 0.951, 1.0]), st.integers(0, 30),
       st.sampled_from([0.8, 1.0, 1.3]), st.data())
def test_distribution_equals_brute_force(logits, temperature, top_p, top_k, penalty, data):
    history = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=8))
    sampling = Sampling(temperature, top_p, top_k, penalty)
    found = distribution(np.array(logits, np.float32), sampling, history)
    expected = brute_force(logits, sampling, history)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@given(LOGITS)
def test_greedy_takes_the_first_largest(logits):
    array = np.array(logits, np.float32)
    assert Sampler(GREEDY)(array) == int(np.argmax(array))
    assert distribution(array, GREEDY).tolist() == np.eye(len(array))[np.argmax(array)].tolist()


def test_greedy_counts_the_repetition_penalty():
    sample = Sampler(Sampling(repetition_penalty=1.5))
    assert sample(np.array([2.0, 1.9, -1.0]), [0]) == 1
    assert sample(np.array([-1.0, -1.2, -9.0]), [0]) == 1
    assert sample(np.array([2.0, 1.9, -1.0]), []) == 0


def test_draws_follow_the_distribution_and_the_seed():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampling = Sampling(temperature=1.0, seed=3)
    sample = Sampler(sampling)
    draws = [sample(logits) for _ in range(20000)]
    again = Sampler(sampling)
    assert draws == [again(logits) for _ in range(20000)]
    other = Sampler(Sampling(temperature=1.0, seed=4))
    assert draws[:50] != [other(logits) for _ in range(50)]
    # Four standard deviations of the rarest token's frequency.
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 20000, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_tokens_cut_off_are_never_drawn():
    sample = Sampler(Sampling(temperature=5.0, top_k=2, seed=0))
    assert {sample(np.array([0.0, 1.0, 0.9, -1.0])) for _ in range(200)} == {1, 2}


@pytest.mark.parametrize(("name", "value"), [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0),
                                             ("top_p", 1.1), ("top_k", -1), ("repetition_penalty", 0.0), ("seed", -1)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name}: expected"):
        Sampling(**{name: value})


@pytest.mark.parametrize("sampling", [Sampling(1e-310, seed=0), Sampling(1e-310, 0.5, 2, seed=0)])
def test_the_coldest_temperature_takes_the_most_likely(sampling):
    assert Sampler(sampling)(np.array([1.0, 3.0, 2.0, -5.0], np.float32)) == 1


@pytest.mark.parametrize(("logits", "penalty"), [([1, np.nan], 1.0), ([1, np.inf], 1.0), ([-np.inf] * 2, 1.0),
                                                 ([1, 2], 1e-320)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_made_up_from_impossible_logits(logits, penalty, temperature):
    with pytest.raises(UserError, match="no token can be chosen"):
        Sampler(Sampling(temperature, repetition_penalty=penalty, seed=0))(np.array(logits, np.float32), [0])


def test_logits_are_left_alone():
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    distribution(logits, Sampling(0.7, 0.5, 2, 1.3), [2])
    assert logits.tolist() == [1.0, 2.0, 3.0]
