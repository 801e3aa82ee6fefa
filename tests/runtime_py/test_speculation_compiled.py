"""Speculative decoding on compiled models: token by token the text of plain decoding, whatever is drafted."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiled import same_bits
from trees import RandomDrafter, reordered
from varied import train_draft, write_varied_model

import build as compiler
from runtime_py import GREEDY, Engine, Generation, Sampling
from runtime_py.sampling import Sampler
from runtime_py.speculation import PLAIN, FixedShape, fixed_shape
from runtime_py.tree import TreeShape

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "blockffn_mlc" / "demo"
SIZES = (1, 2, 7, 32, 64)
TOKENS, VARIED = 40, 20
PENALTY = Sampling(repetition_penalty=1.3)
SAMPLED = Sampling(1.0, top_p=0.9, seed=11)  # by the library's kernel, as greedy; not with a penalty


@pytest.fixture(scope="module", params=["mla", "gqa"])
def engine(request, tmp_path_factory):
    """The demo model (MLA) with its draft, both trained on text, and random weights with grouped-query attention whose
    greedy text is varied (``varied.py``) with a draft trained on those for a hundred steps."""
    folder = tmp_path_factory.mktemp("speculation")
    options = ["--draft", str(DEMO / "draft")]
    if request.param == "gqa":
        write_varied_model(folder / "model")
        train_draft(folder / "model", folder / "draft")
        options = ["--model", str(folder / "model"), "--draft", str(folder / "draft"), "--quantization", "q0f32"]
    assert compiler.main([*options, "-o", str(folder / "artifact"), "-q"]) == 0
    return Engine.load(folder / "artifact")


def drafters(text, vocab, seed):
    """By name: trained draft model, lookup, trees with some right nodes, and with none."""
    return {"trained": "eagle", "ngram": "ngram", "random": RandomDrafter(text, vocab, 0.6, seed),
            "wrong": RandomDrafter(text, vocab, 0.0, seed)}


def varied_texts(engine, sampling, count):
    """``count`` pairs of a random prompt and its plain generation, of those that draw more than VARIED different
    tokens: a text that goes round in circles would be an easy one to get right."""
    rng, vocab, found = np.random.default_rng(0), engine.artifact.config.vocab_size, []
    for _ in range(3 * count):
        prompt = [1, *rng.integers(3, vocab, rng.integers(1, 20)).tolist()]
        plain = engine.generate(prompt, TOKENS, sampling, draft="none")
        list(plain)
        if len(set(plain.ids)) > VARIED:
            found.append((prompt, plain))
        if len(found) == count:
            return found
    pytest.fail(f"only {len(found)} of {3 * count} texts are varied")


@pytest.mark.parametrize(("sampling", "prompts"), [
    (GREEDY, 200), (PENALTY, 30), (SAMPLED, 15), (replace(SAMPLED, repetition_penalty=1.1), 15)],
    ids=["greedy", "penalty", "sampled", "both"])
def test_drafts_never_change_the_text(engine, sampling, prompts):
    """Each prompt with every drafter; the sizes take turns, so that every pair of the two gets a fifth of the prompts.
    In each pair the trained draft and the random trees must have been right more than once a text, the wrong ones
    never. With MLA the trained draft is the demo's; the other model's was trained on that model, which knows no
    language, for a few seconds, and names two of three next tokens. A penalty has to count the path to every node."""
    vocab, texts, accepted = engine.artifact.config.vocab_size, Counter(), Counter()
    for number, (prompt, plain) in enumerate(varied_texts(engine, sampling, prompts)):
        for turn, (name, drafter) in enumerate(drafters(prompt + plain.ids, vocab, number).items()):
            size = SIZES[(number + turn) % len(SIZES)]
            generation = engine.generate(prompt, TOKENS, sampling, draft=drafter, tree_size=size)
            assert [token.id for token in generation] == plain.ids, f"{name}, {size} nodes, prompt {prompt}"
            assert generation.finish_reason == plain.finish_reason
            texts[name, size] += 1
            accepted[name, size] += generation.stats.accepted
    assert texts == dict.fromkeys(itertools.product(drafters([], vocab, 0), SIZES), prompts // len(SIZES))
    for size in SIZES:
        assert accepted["wrong", size] == 0
        assert all(accepted[name, size] > texts[name, size] for name in ("trained", "random")) or size == 1


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


class TwoInThree(FixedShape):
    """Two passes with a tree, then a plain one."""

    passes = 0

    def choose(self, levels):
        self.passes += 1
        return super().choose(levels) if self.passes % 3 else PLAIN


@pytest.mark.parametrize("size", [7, 64])
def test_the_draft_model_goes_on_as_after_plain_decoding(engine, size):
    """What it was told of accepted paths and plain passes lets it draft the very tree that it drafts behind the same
    text in a fresh session, with the same bits in its cache."""
    session, fresh = engine.session("eagle"), engine.session("eagle")
    generation = Generation(session, [1, 40, 41], GREEDY, stop_ids=[], max_tokens=60,
                            controller=TwoInThree(fixed_shape(size, session.drafter)))
    list(generation)
    fresh.extend(session.tokens)
    assert generation.stats.accepted > 10
    one, two = (holder.drafter.draft(generation.ids[-1], TreeShape(64, 6, 10)) for holder in (session, fresh))
    assert one == two and len(one) == 64
    for found, expected in zip(session.drafter._caches, fresh.drafter._caches):
        rows = slice(0, session.length)
        assert same_bits(np.from_dlpack(found)[rows], np.from_dlpack(expected)[rows])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_order_of_nodes_does_not_matter(engine, sampling):
    """The trained draft's trees, verified as drafted by one session and with their nodes in another order by a second
    one: the same logits, path and tokens, and caches that go on alike, all bit for bit. The kernel chooses for the
    first, numpy for the second."""
    rng, lengths, moved = np.random.default_rng(7), [], 0
    for size in (7, 32, 64):
        one, two = engine.session("eagle"), engine.session()
        sample, sample_too = Sampler(sampling, one.accept_kernel), Sampler(sampling)
        prompt = [1, *rng.integers(3, engine.artifact.config.vocab_size, 12).tolist()]
        root = sample(one.extend(prompt), prompt)
        assert sample_too(two.extend(prompt), prompt) == root
        for _ in range(10):
            tree = one.drafter.draft(root, fixed_shape(size, one.drafter))
            other, place = reordered(tree, rng)
            logits, logits_too = (session.tree(nodes.tokens, nodes.parents).logits
                                  for session, nodes in ((one, tree), (two, other)))
            assert same_bits(logits, logits_too[place])
            path, tokens = sample.accept(tree, logits, one.tokens)
            path_too = [place[node] for node in path]
            assert sample_too.accept(other, logits_too, two.tokens) == (path_too, tokens)
            one.commit(path)
            two.commit(path_too)
            root = tokens[-1]
            lengths.append(len(path))
            moved += path_too != path
        assert one.tokens == two.tokens and same_bits(one.step(root), two.step(root))
    assert max(lengths) > 2 and moved > 10


def test_the_context_limit_inside_trees(engine):
    window, vocab = engine.artifact.context_window_size, engine.artifact.config.vocab_size
    prompt = np.random.default_rng(2).integers(3, vocab, window - 12).tolist()
    plain = engine.generate(prompt, 12, draft="none")
    list(plain)
    for drafter, size in itertools.product(drafters(prompt + plain.ids, vocab, 3).values(), (7, 64)):
        generation = engine.generate(prompt, 12, draft=drafter, tree_size=size)
        assert [token.id for token in generation] == plain.ids and generation._session.room == window - len(
            prompt) - len(plain.ids) + 1


@pytest.mark.parametrize("engine", ["mla"], indirect=True)
def test_repetitive_text_takes_few_passes(engine):
    """The demo model soon repeats itself; lookup then brings more than two tokens per pass."""
    found = []
    for start in range(20, 30):
        plain, generation = (engine.generate([1, start], 80, draft=draft, tree_size=size)
                             for draft, size in (("none", None), ("ngram", 8)))
        assert list(generation) == list(plain)
        found.append(generation.stats.mean_accept_length)
    assert np.mean(found) > 2


@pytest.mark.parametrize("engine", ["mla"], indirect=True)
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
