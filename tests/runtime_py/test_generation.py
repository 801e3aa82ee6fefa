"""Generation: tokens, stops, limits and figures; scoring."""

import itertools

import numpy as np
import pytest
from toy import CHUNK, WINDOW

from blockffn_mlc.errors import UserError
from runtime_py import Sampling
from runtime_py.engine import perplexity, token_log_probs
from runtime_py.generation import DEFAULT_MAX_TOKENS, Generation

PROMPT = [1, 40, 41, 42]


def greedy_by_hand(engine, prompt, count):
    """No cache at all: the whole text is fed again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(engine.score(ids).logits[-1])))
    return ids[len(prompt):]


def test_greedy_generation_equals_recomputing_everything(engine):
    generation = engine.generate(PROMPT, max_tokens=12)
    tokens = list(generation)
    assert [token.id for token in tokens] == generation.ids == greedy_by_hand(engine, PROMPT, 12)
    assert "".join(token.text for token in tokens) == generation.text
    assert generation.text == engine.tokenizer.decode(PROMPT + generation.ids)[len(engine.tokenizer.decode(PROMPT)):]
    assert generation.finish_reason == "length"


def test_the_first_stop_token_ends_it(engine):
    ids = list(engine.generate(PROMPT, max_tokens=12))
    stop = ids[5].id
    first = [token.id for token in ids].index(stop)
    generation = Generation(engine.session(), PROMPT, Sampling(), stop_ids=[stop], max_tokens=12)
    list(generation)
    assert generation.ids == [token.id for token in ids[:first + 1]] and generation.finish_reason == "eos"


def test_the_stop_token_has_no_text(engine):
    class Decoder:
        def push(self, token_id):
            return f"{token_id} "

        def finish(self):
            return "end"

    stop = greedy_by_hand(engine, PROMPT, 1)[0]
    generation = Generation(engine.session(), PROMPT, Sampling(), stop_ids=[stop], max_tokens=12, decoder=Decoder())
    assert [(token.id, token.text) for token in generation] == [(stop, "end")]


def test_the_same_seed_gives_the_same_text(engine):
    sampling = Sampling(temperature=3.0, top_p=0.95, top_k=50, repetition_penalty=1.1, seed=5)
    first, second = (list(engine.generate(PROMPT, 20, sampling)) for _ in range(2))
    assert first == second
    assert first != list(engine.generate(PROMPT, 20, Sampling(3.0, 0.95, 50, 1.1, seed=6)))


def test_the_repetition_penalty_counts_prompt_and_answer(engine):
    # So strong a penalty that no token comes twice.
    ids = [token.id for token in engine.generate(PROMPT, 30, Sampling(repetition_penalty=1e6))]
    assert len(set(PROMPT + ids)) == len(PROMPT) + 30


def test_text_prompts_get_bos(engine):
    generation = engine.generate("the ing", max_tokens=1)
    next(generation)
    expected = [1, *engine.tokenizer.encode("the ing")]
    assert generation.stats.prompt_tokens == len(expected)
    assert generation.ids == greedy_by_hand(engine, expected, 1)


def test_overflow_is_refused_before_any_work(engine):
    with pytest.raises(UserError, match=f"{WINDOW + 1} tokens .*window of {WINDOW}"):
        engine.generate([3] * 10, max_tokens=WINDOW - 9)
    with pytest.raises(UserError, match="do not fit"):
        engine.generate([3] * WINDOW)
    with pytest.raises(UserError, match="do not fit"):
        engine.score([3] * (WINDOW + 1))
    with pytest.raises(UserError, match="max_tokens"):
        engine.generate([3], max_tokens=0)
    assert engine.library.calls == []


def test_the_window_can_be_filled_to_the_last_token(engine):
    generation = engine.generate([3] * 10, max_tokens=WINDOW - 10, sampling=Sampling(1.0, seed=0))
    assert len(list(generation)) == WINDOW - 10 or generation.finish_reason == "eos"
    assert engine.generate([3] * 10).max_tokens == min(DEFAULT_MAX_TOKENS, WINDOW - 10)


def test_generation_is_lazy_and_resumable(engine):
    generation = engine.generate(PROMPT, max_tokens=8)
    assert engine.library.calls == []
    head = [token.id for token in itertools.islice(generation, 3)]
    assert generation.finish_reason is None and generation.ids == head
    assert head + [token.id for token in generation] == greedy_by_hand(engine, PROMPT, 8)


def test_figures(engine):
    generation = engine.generate([3] * (CHUNK + 1), max_tokens=3)
    list(generation)
    figures = generation.stats.to_dict()
    assert figures["prompt_tokens"] == CHUNK + 1 and figures["generated_tokens"] == 3
    assert figures["time_to_first_token_s"] >= generation.stats.prefill_seconds > 0
    assert figures["prefill_tokens_per_s"] == (CHUNK + 1) / generation.stats.prefill_seconds
    assert figures["decode_tokens_per_s"] == 2 / generation.stats.decode_seconds
    assert figures["peak_memory_bytes"] > 1 << 20
    single = engine.generate([3], max_tokens=1)
    list(single)
    assert single.stats.to_dict()["decode_tokens_per_s"] is None and "decode 1 tokens" in str(single.stats)


def test_score_gives_teacher_forced_results(engine):
    ids = [1, 50, 60, 70, 80, 90]
    score = engine.score(ids)
    assert score.logits.dtype == score.router_scores.dtype == np.float32
    for length in range(1, len(ids) + 1):
        np.testing.assert_array_equal(engine.session().extend(ids[:length]), score.logits[length - 1])
    wide = score.logits.astype(np.float64)
    probs = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    expected = [np.log(probs[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    np.testing.assert_allclose(score.log_probs, expected, rtol=1e-12)
    np.testing.assert_allclose(score.perplexity, np.prod(np.exp(expected)) ** (-1 / len(expected)), rtol=1e-12)


def test_texts_are_scored_as_they_are_generated_from(engine):
    expected = engine.score(engine.encode("the ing"))
    np.testing.assert_array_equal(engine.score("the ing").log_probs, expected.log_probs)


def test_ids_are_integers_and_known_before_any_work(engine):
    for ids in ([1.9, 5.2], ["a"], [1, 300]):
        with pytest.raises(UserError, match="integers|not in the vocabulary"):
            engine.score(ids)
    assert engine.library.calls == []
    engine.score(np.array([1, 5]))


def test_log_probs_of_extreme_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0], [-3e38, 3e38, 0]], np.float32)
    np.testing.assert_allclose(token_log_probs(logits, [0, 2]), [0.0, -float(np.float32(3e38))], rtol=1e-12)
    assert np.isnan(perplexity(np.empty(0)))
