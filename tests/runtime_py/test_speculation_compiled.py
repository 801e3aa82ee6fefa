"""Speculative decoding on compiled models: token by token the text of plain decoding, whatever is drafted."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trees import RandomDrafter

import build as compiler
from runtime_py import GREEDY, Engine, Sampling

ROOT = Path(__file__).resolve().parents[2]
GOLDEN, DEMO = ROOT / "tests" / "golden", ROOT / "blockffn_mlc" / "demo"
SIZES = (1, 2, 7, 32, 64)
TOKENS = 30
# Random weights repeat themselves; a penalty keeps texts varied, and has to count the path to every node.
PENALTY = Sampling(repetition_penalty=1.3)
SAMPLED = Sampling(1.0, top_p=0.9, repetition_penalty=1.1, seed=11)


@pytest.fixture(scope="module", params=["mla", "gqa"])
def engine(request, tmp_path_factory):
    """The demo model (MLA, trained weights and draft) and random weights with grouped-query attention."""
    options = {"mla": ["--draft", str(DEMO / "draft")],
               "gqa": ["--model", str(GOLDEN / "gqa_block_linear"), "--draft", str(GOLDEN / "eagle_gqa"),
                       "--quantization", "q0f32"]}[request.param]
    out = tmp_path_factory.mktemp("speculation") / request.param
    assert compiler.main([*options, "-o", str(out), "-q"]) == 0
    return Engine.load(out)


def drafters(text, vocab, seed):
    """By name: trained (or random) draft model, lookup, trees with some right nodes, and with none."""
    return {"eagle": "eagle", "ngram": "ngram", "random": RandomDrafter(text, vocab, 0.6, seed),
            "wrong": RandomDrafter(text, vocab, 0.0, seed)}


@pytest.mark.parametrize(("sampling", "prompts"), [(GREEDY, 60), (PENALTY, 30), (SAMPLED, 12)],
                         ids=["greedy", "penalty", "sampled"])
def test_drafts_never_change_the_text(engine, sampling, prompts):
    """Each prompt with every drafter; the sizes take turns, so that all pairs of the two occur."""
    rng, vocab = np.random.default_rng(0), engine.artifact.config.vocab_size
    varied, accepted = 0, dict.fromkeys(drafters([], vocab, 0), 0)
    for number in range(prompts):
        prompt = [1, *rng.integers(3, vocab, rng.integers(1, 20)).tolist()]
        plain = engine.generate(prompt, TOKENS, sampling, draft="none")
        list(plain)
        varied += len(set(plain.ids)) > 20
        for turn, (name, drafter) in enumerate(drafters(prompt + plain.ids, vocab, number).items()):
            size = SIZES[(number + turn) % len(SIZES)]
            generation = engine.generate(prompt, TOKENS, sampling, draft=drafter, tree_size=size)
            assert [token.id for token in generation] == plain.ids, f"{name}, {size} nodes, prompt {prompt}"
            assert generation.finish_reason == plain.finish_reason
            accepted[name] += generation.stats.accepted
    assert varied > prompts / 2 or sampling == GREEDY
    assert accepted["wrong"] == 0 and accepted["random"] > prompts
    if sampling == GREEDY:
        assert accepted["ngram"] > prompts
        assert accepted["eagle"] > prompts or engine.artifact.config.attention_type != "mla"  # the other is not trained


def test_caches_stay_those_of_plain_decoding(engine):
    """After paths of all forms were committed, the session goes on bit for bit like a fresh one."""
    vocab = engine.artifact.config.vocab_size
    plain = engine.generate([1, 40, 41], 60, PENALTY, draft="none")
    list(plain)
    text = [1, 40, 41, *plain.ids]
    generation = engine.generate([1, 40, 41], 60, PENALTY, draft=RandomDrafter(text, vocab, 0.6), tree_size=32)
    list(generation)
    fresh = engine.session()
    fresh.extend(text[:-1])
    assert generation.stats.accepted > 10 and generation._session.tokens == fresh.tokens
    for token in (text[-1], 5, 6):
        np.testing.assert_array_equal(generation._session.step(token), fresh.step(token))


def test_the_context_limit_inside_trees(engine):
    window, vocab = engine.artifact.context_window_size, engine.artifact.config.vocab_size
    prompt = np.random.default_rng(2).integers(3, vocab, window - 12).tolist()
    plain = engine.generate(prompt, 12, draft="none")
    list(plain)
    for drafter, size in itertools.product(drafters(prompt + plain.ids, vocab, 3).values(), (7, 64)):
        generation = engine.generate(prompt, 12, draft=drafter, tree_size=size)
        assert [token.id for token in generation] == plain.ids and generation._session.room == window - len(
            prompt) - len(plain.ids) + 1


def test_repetitive_text_takes_few_passes(engine):
    """These models soon repeat themselves; lookup then brings more than two tokens per pass."""
    found = []
    for start in range(20, 30):
        generation = engine.generate([1, start], 80, draft="ngram", tree_size=8)
        list(generation)
        found.append(generation.stats.mean_accept_length)
    assert np.mean(found) > 2


@pytest.mark.parametrize("engine", ["mla"], indirect=True)  # the other model's draft is not trained
def test_the_trained_draft_is_often_right(engine):
    """Greedily, behind pieces of held-out text."""
    ids, lengths = engine.tokenizer.encode((DEMO / "heldout.txt").read_text(encoding="utf-8")), []
    for start in range(0, len(ids), 400):
        generation = engine.generate([1, *ids[start:start + 16]], 60, draft="eagle", tree_size=8)
        list(generation)
        lengths += generation.stats.accept_lengths
    assert len(lengths) > 100 and np.mean(lengths) >= 2.2


@pytest.mark.parametrize(("draft", "draft_seconds"), [("eagle", tuple(0.05 * depth for depth in range(1, 9))),
                                                      ("ngram", ())])
def test_sizes_chosen_while_decoding_never_change_the_text(engine, monkeypatch, fixed_costs, draft, draft_seconds):
    costs = replace(fixed_costs, draft_seconds=draft_seconds)
    monkeypatch.setattr("runtime_py.engine.cost_table", lambda *_, **__: costs)
    monkeypatch.setattr(engine, "_costs", {})
    rng, vocab, drafted = np.random.default_rng(4), engine.artifact.config.vocab_size, 0
    for _ in range(8):
        prompt = [1, *rng.integers(3, vocab, 12).tolist()]
        plain = engine.generate(prompt, 60, draft="none")
        list(plain)
        generation = engine.generate(prompt, 60, draft=draft)
        assert [token.id for token in generation] == plain.ids
        drafted += generation.stats.drafted
    assert drafted > 0
