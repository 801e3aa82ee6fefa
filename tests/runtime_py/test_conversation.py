"""Conversations: the rendered tokens, and a cache that is kept from turn to turn."""

import json
import sys

import numpy as np
import pytest
from toy import WINDOW

from blockffn_mlc.errors import UserError
from runtime_py.conversation import Conversation
from runtime_py.sampling import GREEDY
from runtime_py.template import InlineTemplate, JinjaTemplate, Turn, load_template

JINJA = ("{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}<A>"
         "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}")


def set_jinja(folder, template):
    config = {"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def edit_template(folder, **fields):
    path = folder / "mlc-chat-config.json"
    values = json.loads(path.read_text())
    values["conv_template"].update(fields)
    path.write_text(json.dumps(values))


def template_of(engine):
    from runtime_py.artifact import Artifact
    return load_template(Artifact.open(engine.artifact.path), engine.tokenizer)


def test_the_released_format_is_bos_then_question_answer_eos_per_turn(engine):
    template, encode = template_of(engine), engine.tokenizer.encode
    assert isinstance(template, InlineTemplate) and template.stop_ids == {2}
    assert template.render([Turn("the")]) == [1, *encode("<U>the<A>")]
    stopped, cut = Turn("the", "ing", [50, 51, 2]), Turn("in", "e", [52])
    expected = [1, *encode("<U>the<A>"), 50, 51, 2, *encode("<U>in<A>"), 52, 2, *encode("<U>x<A>")]
    assert template.render([stopped, cut, Turn("x")]) == expected


def test_separators_and_system_message(engine):
    edit_template(engine.artifact.path, system_template="S:{system_message};", system_message="be", seps=["|"],
                  role_content_sep=": ", role_empty_sep=":", system_prefix_token_ids=None)
    encode = engine.tokenizer.encode
    ids = template_of(engine).render([Turn("the", "x", [60, 2]), Turn("in")])
    assert ids == [1, *encode("S:be;"), *encode("<U>: the|<A>:"), 60, *encode("|"), *encode("<U>: in|<A>:")]


NAMED = [{"name": "tool", "template": "x"}, {"name": "default", "template": JINJA}]


@pytest.mark.parametrize("template", [JINJA, NAMED])
def test_the_tokenizers_own_template_wins(engine, template):
    set_jinja(engine.artifact.path, template)
    found = template_of(engine)
    assert isinstance(found, JinjaTemplate)
    expected = engine.tokenizer.encode("<s><U>the<A>ing</s><U>in<A>")
    assert found.render([Turn("the", "ing", [50, 2]), Turn("in")]) == expected
    assert expected[0] == 1 and 2 in expected


@pytest.mark.parametrize(("template", "message"), [
    ("{% for %}", "the chat template cannot be used"), ("{{ raise_exception('no') }}", "cannot be used: no"),
    ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "cannot be used"),
    ("{{ 1 / nothing }}", "cannot be used"), ("{{ 1 / 0 }}", "cannot be used: division by zero"),
    ("{{ messages[0].content + 1 }}", "cannot be used")])
def test_templates_that_fail_or_reach_out_of_the_sandbox_are_refused(engine, template, message):
    set_jinja(engine.artifact.path, template)
    with pytest.raises(UserError, match=message):
        template_of(engine).render([Turn("the")])


def test_a_template_file_of_its_own_comes_first(engine):
    set_jinja(engine.artifact.path, "never")
    (engine.artifact.path / "chat_template.jinja").write_text(JINJA)
    assert template_of(engine).render([Turn("the")]) == engine.tokenizer.encode("<s><U>the<A>")


def test_bos_comes_first_whether_the_template_writes_it_or_not(engine):
    set_jinja(engine.artifact.path, JINJA.replace("{{ bos_token }}", ""))
    assert template_of(engine).render([Turn("the")]) == [1, *engine.tokenizer.encode("<U>the<A>")]


def test_templates_may_leave_loops_and_name_every_special_token(engine):
    set_jinja(engine.artifact.path, "{% for m in messages %}{{ m.content }}{{ unk_token }}{% break %}{% endfor %}")
    path = engine.artifact.path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unk_token": "<unk>"}))
    assert template_of(engine).render([Turn("the"), Turn("in")]) == [1, *engine.tokenizer.encode("the<unk>")]


def test_answers_stop_at_the_tokenizers_eos_too(engine):
    set_jinja(engine.artifact.path, JINJA)
    path = engine.artifact.path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<unk>"}))
    assert template_of(engine).stop_ids == {2, 0}


def test_a_missing_jinja2_is_named(engine, monkeypatch):
    set_jinja(engine.artifact.path, JINJA)
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    with pytest.raises(UserError, match="pip install jinja2"):
        template_of(engine)


@pytest.mark.parametrize(("fields", "message"), [({"seps": []}, "'seps': expected one or two strings"),
                                                 ({"roles": {"user": "<U>"}}, "'assistant' is missing"),
                                                 ({"stop_token_ids": [-1]}, "'stop_token_ids'")])
def test_malformed_templates_are_refused(engine, fields, message):
    edit_template(engine.artifact.path, **fields)
    with pytest.raises(UserError, match=message):
        template_of(engine)


@pytest.mark.parametrize("jinja", [False, True])
def test_the_cache_is_kept_across_turns_and_answers_as_a_fresh_one(engine, jinja):
    if jinja:
        set_jinja(engine.artifact.path, JINJA)
    conversation = Conversation(engine)
    fed = []
    for question in ("the", "in", "ing"):
        generation = conversation.ask(question, GREEDY, max_tokens=4)
        list(generation)
        fed.append(generation.stats.prompt_tokens)
        held = list(conversation.session.tokens)
        fresh = engine.session()
        fresh.extend(held)
        probe = conversation.session.extend([77])
        np.testing.assert_array_equal(probe, fresh.extend([77]))
        conversation.session.rollback(len(held))
    if not jinja:  # last answer token, eos, question: nothing is fed twice
        assert fed[1:] == [2 + len(engine.tokenizer.encode(f"<U>{q}<A>")) for q in ("in", "ing")]


def test_an_answer_broken_off_stays_as_far_as_it_came(engine):
    conversation = Conversation(engine)
    generation = conversation.ask("the", GREEDY, max_tokens=8)
    first = [next(generation).id, next(generation).id]
    list(conversation.ask("in", GREEDY, max_tokens=2))
    assert conversation.turns[0].reply_ids == first
    expected = conversation._template.render(conversation.turns)
    assert conversation.session.tokens[:len(expected)] == expected


def test_answers_shrink_to_the_room_that_is_left(engine):
    conversation = Conversation(engine)
    generation = conversation.ask("x" * 80, GREEDY, max_tokens=90)
    prompt = 1 + len(engine.tokenizer.encode("<U><A>")) + 80
    assert generation.max_tokens == WINDOW - prompt
    list(generation)
    with pytest.raises(UserError, match="/reset"):
        conversation.ask("x" * 80, GREEDY, max_tokens=1)


def test_an_old_answer_leaves_the_new_conversation_alone(engine):
    conversation = Conversation(engine)
    old = conversation.ask("the", GREEDY, max_tokens=8)
    next(old)
    new = conversation.ask("in", GREEDY, max_tokens=4)
    next(new)
    held = list(conversation.session.tokens)
    assert list(old) == [] and conversation.session.tokens == held
    conversation.reset()
    assert list(new) == [] and conversation.session.length == 0


def test_a_conversation_needs_a_tokenizer(engine):
    (engine.artifact.path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="which a conversation needs"):
        Conversation(engine)


def test_a_full_window_refuses_the_question_and_reset_empties_it(engine):
    conversation = Conversation(engine)
    list(conversation.ask("the", GREEDY, max_tokens=4))
    with pytest.raises(UserError, match="do not fit into the context window"):
        conversation.ask("x" * 90, GREEDY)
    assert len(conversation.turns) == 1
    list(conversation.ask("in", GREEDY, max_tokens=2))
    conversation.reset()
    assert conversation.session.length == 0
    generation = conversation.ask("the", GREEDY, max_tokens=4)
    assert generation.stats.prompt_tokens == 1 + len(engine.tokenizer.encode("<U>the<A>"))
