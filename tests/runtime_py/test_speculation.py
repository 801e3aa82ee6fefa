"""The speculative loop on the toy model: the text of plain decoding, stops and limits inside a path, figures."""

import itertools

import numpy as np
import pytest
from toy import CHUNK, WINDOW
from trees import RandomDrafter, Scribe

from blockffn_mlc.errors import UserError
from runtime_py import GREEDY, Generation, Sampling
from runtime_py import engine as engine_module
from runtime_py.conversation import Conversation
from runtime_py.drafters.scripted import ScriptedDrafter
from runtime_py.sampling import Sampler
from runtime_py.session import Session
from runtime_py.speculation import FixedShape
from runtime_py.tree import Tree, TreeShape

PROMPT = [1, 40, 41, 42]
SAMPLED = Sampling(temperature=1.5, top_p=0.95, top_k=40, repetition_penalty=1.1, seed=5)


def plain(engine, sampling=GREEDY, count=24, prompt=PROMPT):
    generation = engine.generate(prompt, count, sampling, draft="none")
    list(generation)
    return generation


def perfect(text, accuracy=1.0):
    return ScriptedDrafter(text, accuracy, 300)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(repetition_penalty=1.5), SAMPLED, Sampling(1.0, seed=1)])
@pytest.mark.parametrize("size", [1, 2, 7, CHUNK])
def test_the_text_is_that_of_plain_decoding(engine, sampling, size):
    expected = plain(engine, sampling)
    text = PROMPT + expected.ids
    for drafter in ("ngram", perfect(text), perfect(text, 0.5), RandomDrafter(text, 300, 0.0),
                    RandomDrafter(text, 300, 0.6)):
        generation = engine.generate(PROMPT, 24, sampling, draft=drafter, tree_size=size)
        tokens = list(generation)
        assert [token.id for token in tokens] == generation.ids == expected.ids
        assert generation.text == expected.text == "".join(token.text for token in tokens)
        assert generation.finish_reason == expected.finish_reason
        assert generation._session.tokens == text[:-1]
    assert size == 1 or generation.stats.accepted > 0


def test_a_perfect_draft_fills_every_pass(engine):
    text = PROMPT + plain(engine).ids
    generation = engine.generate(PROMPT, 24, draft=perfect(text), tree_size=8)
    list(generation)
    assert generation.stats.accept_lengths == [8, 8, 7]  # the first of the 24 comes out of the prefill
    assert engine.library.calls[-4:] == [(len(PROMPT), 1), (8, 8), (8, 8), (8, 8)]


def test_a_stop_token_inside_an_accepted_path_ends_it(engine):
    ids = plain(engine).ids
    stop = next(token for position, token in enumerate(ids) if position > 3 and token not in ids[:position])
    expected = ids[:ids.index(stop) + 1]
    session = engine.session(perfect(PROMPT + ids))
    generation = Generation(session, PROMPT, GREEDY, stop_ids=[stop], max_tokens=24,
                            controller=FixedShape(TreeShape(16, 15, 1)))
    assert [token.id for token in generation] == expected and generation.finish_reason == "eos"
    assert session.tokens == PROMPT + expected[:-1]
    assert generation.stats.accept_lengths == [len(expected) - 1]  # one pass
    fresh = engine.session()
    fresh.extend(session.tokens)
    np.testing.assert_array_equal(session.step(stop), fresh.step(stop))


@pytest.mark.parametrize("count", range(1, 9))
def test_max_tokens_inside_an_accepted_path(engine, count):
    text = PROMPT + plain(engine).ids
    generation = engine.generate(PROMPT, count, draft=perfect(text), tree_size=4)
    assert [token.id for token in generation] == text[4:4 + count] and generation.finish_reason == "length"
    assert generation._session.tokens == text[:3 + count]


@pytest.mark.parametrize("right", [0.0, 0.9])
def test_the_window_can_be_filled_to_the_last_token(engine, right):
    expected = plain(engine, SAMPLED, WINDOW - len(PROMPT)).ids
    drafter = RandomDrafter(PROMPT + expected, 300, right)
    generation = engine.generate(PROMPT, sampling=SAMPLED, draft=drafter, tree_size=CHUNK)
    assert [token.id for token in generation] == expected and len(expected) == WINDOW - len(PROMPT)
    assert generation._session.room == 1
    assert all(len(PROMPT) + shape.depth < WINDOW for shape in drafter.shapes)
    assert min(shape.depth for shape in drafter.shapes) < CHUNK - 1  # trees shrank


def test_generation_is_lazy(engine):
    text = PROMPT + plain(engine).ids
    generation = engine.generate(PROMPT, 24, draft=perfect(text), tree_size=8)
    assert engine.library.calls[-1] != (4, 1)
    assert [token.id for token in itertools.islice(generation, 3)] == generation.ids == text[4:7]
    assert generation.stats.passes == 1 and len(generation.ids) == 3
    generation.close()
    assert list(generation) == [] and generation.finish_reason is None


def test_the_drafter_is_told_of_every_change(engine):
    class Checked(RandomDrafter):
        def draft(self, root, shape):
            assert self.tokens == self.session.tokens
            return super().draft(root, shape)
    drafter = Checked(PROMPT + plain(engine).ids, 300, 0.7)
    drafter.tokens = [5, 5]  # of an earlier session
    session = drafter.session = engine.session(drafter)
    assert drafter.tokens == []
    shape = FixedShape(TreeShape(6, 4, 10))
    list(Generation(session, PROMPT, GREEDY, stop_ids=[], max_tokens=12, controller=shape))
    assert drafter.tokens == session.tokens and len(drafter.shapes) > 0
    session.reuse([*session.tokens[:9], 7, 8])
    assert drafter.tokens == session.tokens and session.length == 9
    list(Generation(session, [7, 8], SAMPLED, stop_ids=[], max_tokens=12, controller=shape))
    session.rollback(3)
    session.step(9)
    session.tree([1, 2], [-1, 0])
    session.commit([0, 1])
    assert drafter.tokens == session.tokens and session.length == 6


def test_a_conversation_goes_on_with_its_drafter(engine):
    """Also after an answer that was broken off inside an accepted path."""
    repeating = Sampling(repetition_penalty=0.3)
    scribe, replies, broken_off_inside = Scribe(), [], False
    for draft, size in (("none", None), (scribe, 4), ("ngram", 4)):
        conversation = Conversation(engine, draft, size)
        scribe.session, answers = conversation.session, []
        for question, count in (("the", 8), ("ing", 8), ("the ing", 12)):
            answer = conversation.ask(question, repeating, 12)
            answers.append([token.id for token in itertools.islice(answer, count)])
            broken_off_inside |= sum(answer.stats.accept_lengths) > len(answer.ids) - 1
        replies.append(answers)
        if draft is scribe:
            assert scribe.tokens == conversation.session.tokens and len(scribe.shapes) > 10
    assert replies[0] == replies[1] == replies[2] and broken_off_inside


def test_figures(engine):
    text = PROMPT + plain(engine).ids
    generation = engine.generate(PROMPT, 24, draft=RandomDrafter(text, 300, 0.7), tree_size=8)
    list(generation)
    stats, found = generation.stats, generation.stats.to_dict()
    assert sum(stats.accept_lengths) == 23 and found["passes"] == len(stats.accept_lengths)
    assert found["accepted_tokens"] == 23 - found["passes"] > 0
    assert found["mean_accept_length"] == 23 / found["passes"]
    trees = [n for n, m in engine.library.calls if n == m > 1][-len(stats.union_shares):]
    assert found["drafted_tokens"] == found["verified_tokens"] == sum(trees) - len(trees)
    assert 0 < found["union_share"] == np.mean(stats.union_shares) <= 1
    parts = [found["draft_s"], found["verify_s"], found["overhead_s"]]
    assert min(parts) > 0 and sum(parts) == pytest.approx(stats.decode_seconds)
    assert f"accepted {found['accepted_tokens']}," in str(stats) and "verify" in str(stats)
    without = plain(engine).stats
    assert without.accept_lengths == [1] * 23 and without.drafted == 0 and without.union_share is None
    assert "drafted" not in str(without)


def test_clocks_are_read_when_the_device_is_done(engine, monkeypatch):
    events = []

    def record(name):
        method = getattr(Session, name)

        def recorded(*arguments):
            events.append(name)
            return method(*arguments)
        monkeypatch.setattr(Session, name, recorded)
    text = PROMPT + plain(engine).ids
    for name in ("step", "tree", "commit", "wait"):
        record(name)
    monkeypatch.setattr("runtime_py.speculation.perf_counter", lambda: events.append("clock") or 0.0)
    list(engine.generate(PROMPT, 24, draft=RandomDrafter(text, 300, 0.7), tree_size=4))
    list(engine.generate(PROMPT, 24, draft="none"))
    after = {name: {following for event, following in itertools.pairwise(events) if event == name}
             for name in ("step", "tree", "commit")}
    assert after == {"step": {"wait"}, "tree": {"wait"}, "commit": {"wait"}}


def test_the_union_of_a_pass_counts_every_expert_once(engine, monkeypatch):
    outputs = []
    tree = type(engine.session()).tree

    def kept(session, *arguments):
        outputs.append(tree(session, *arguments))
        return outputs[-1]
    monkeypatch.setattr("runtime_py.session.Session.tree", kept)
    text = PROMPT + plain(engine).ids
    generation = engine.generate(PROMPT, 24, draft=RandomDrafter(text, 300, 0.3), tree_size=5)
    list(generation)
    expected = [(output.router_scores != 0).any(axis=1).mean() for output in outputs]
    assert generation.stats.union_shares == pytest.approx(expected) and len(expected) > 5


def test_a_controller_decides_what_is_drafted_and_verified(engine):
    class Controller:
        def __init__(self):
            self.shapes = itertools.cycle([TreeShape(1, 0, 1), TreeShape(8, 5, 2), TreeShape(6, 3, 2)])
            self.seen = []

        def restart(self):
            self.seen.append("restart")

        def choose(self, levels):
            return next(self.shapes).at_most(levels)

        def cut(self, tree):
            return tree.first(5)

        def observe(self, tree, text):
            self.seen.append((tree and len(tree), text))
    text = PROMPT + plain(engine).ids
    controller = Controller()
    session = engine.session(perfect(text))
    generation = Generation(session, PROMPT, GREEDY, stop_ids=[], max_tokens=21, controller=controller)
    assert [token.id for token in generation] == text[4:25]
    parts = itertools.pairwise(itertools.accumulate([1, 5, 4] * 2, initial=len(PROMPT)))
    assert controller.seen == ["restart", *zip([None, 8, 6] * 2, (text[start:end] for start, end in parts))]
    stats = generation.stats
    assert stats.accept_lengths == [1, 5, 4, 1, 5, 4] and (stats.drafted, stats.verified) == (24, 16)


@pytest.mark.parametrize(("draft", "size", "message"), [
    ("eagle", None, "has no draft model"), ("none", 4, "4 nodes need a drafter"), ("ngram", 0, "1 to 16 nodes"),
    ("ngram", 17, "1 to 16 nodes, which this artifact allows, found 17"), ("lookahead", None, "expected one of none")])
def test_impossible_choices_are_refused_before_any_work(engine, draft, size, message):
    with pytest.raises(UserError, match=message):
        engine.generate(PROMPT, 4, draft=draft, tree_size=size)
    with pytest.raises(UserError, match=message):
        Conversation(engine, draft, size)
    assert engine.library.calls == []
    assert engine.generate(PROMPT, 4, draft="none", tree_size=1).draft == "none"


@pytest.mark.parametrize(("count", "length", "message"), [
    (0, 4, "expected a positive integer"), (WINDOW, 4, "do not fit"), (None, WINDOW, "do not fit"),
    (4, 0, "no tokens")])
def test_nothing_is_measured_for_what_is_refused(engine, monkeypatch, count, length, message):
    measured, costs = [], engine_module.cost_table
    monkeypatch.setattr(engine_module, "cost_table", lambda *_, **__: measured.append(1) or costs())
    with pytest.raises(UserError, match=message):
        engine.generate([1] * length, count, draft="ngram")
    assert measured == [] == engine.library.calls
    engine.generate(PROMPT, 4, draft="ngram")
    assert measured == [1]


@pytest.mark.parametrize(("tree", "found"), [
    (lambda root: Tree([root + 1, 5], [-1, 0]), "found 2 nodes and 1 levels below the root"),
    (lambda root: Tree([root, 5, 6, 7, 8], [-1, 0, 0, 0, 0]), "found 5 nodes and 1 levels"),
    (lambda root: Tree([root, 5, 6, 7], [-1, 0, 1, 2]), "found 4 nodes and 3 levels")])
def test_a_drafter_that_proposes_what_it_was_not_asked_for(engine, tree, found):
    class Bad(Scribe):
        name = "bad"

        def draft(self, root, shape):
            return tree(root)
    generation = Generation(engine.session(Bad()), PROMPT, GREEDY, stop_ids=[], max_tokens=12,
                            controller=FixedShape(TreeShape(4, 2, 10)))
    with pytest.raises(ValueError, match=f"drafter bad: expected at most 4 nodes and 2 levels .* {found}"):
        list(generation)


@pytest.mark.parametrize("size", [1, 6])
def test_every_draw_knows_the_text_before_it_once(engine, monkeypatch, size):
    histories = []

    class Spy(Sampler):
        def __call__(self, logits, history):
            histories.append(list(history))
            return super().__call__(logits, histories[-1])
    text = PROMPT + plain(engine).ids
    monkeypatch.setattr("runtime_py.generation.Sampler", Spy)
    list(engine.generate(PROMPT, 24, draft=RandomDrafter(text, 300, 0.6), tree_size=size))
    assert all(history == text[:len(history)] for history in histories)
    assert {len(history) for history in histories} >= set(range(len(PROMPT), len(text)))
