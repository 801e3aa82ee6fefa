"""Spec-Bench's questions and the folder of answers: what is read, refused, repaired and gone on with."""

import json

import pytest

from blockffn_mlc.errors import UserError
from runtime_py.specbench.answers import Answer, AnswerStore, Skipped
from runtime_py.specbench.questions import TASKS, Question, choose, read_questions

SETTINGS = {"artifact": "toy", "modes": ["dense", "sparse"], "max_tokens": 8, "tree_size": None}
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities", "translation",
              "summarization", "qa", "math_reasoning", "rag")


def write_questions(path, *questions):
    path.write_text("\n".join(json.dumps(question, ensure_ascii=False) for question in questions) + "\n",
                    encoding="utf-8")
    return path


def question(number, category="qa", turns=("the",), **more):
    return {"question_id": number, "category": category, "turns": list(turns), **more}


def answer(number, **changes):
    values = dict(question_id=number, category="qa", turns=["text\u2028"], decoding_steps=[3], new_tokens=[6],
                  wall_time=[1.5], accept_lengths=[2, 2, 1], union_shares=[0.25], prefill_time=[0.5],
                  finish_reasons=["eos"])
    return Answer(**values | changes)


def store(folder, notes=None, **changes):
    return AnswerStore(folder, SETTINGS | changes, ("dense", "sparse"), (notes if notes is not None else []).append)


def test_questions_are_read_with_their_tasks(tmp_path):
    path = write_questions(tmp_path / "q.jsonl", *(question(i, category) for i, category in enumerate(CATEGORIES)),
                           question("x", turns=["a\u2028b", "\u7528"], reference=["?"]))
    questions = read_questions(path)
    assert [q.id for q in questions] == [*range(13), "x"]
    assert [q.task for q in questions] == ["mt"] * 8 + ["translation", "summarization", "qa", "math", "rag", "qa"]
    assert questions[-1] == Question("x", "qa", ("a\u2028b", "\u7528"))
    assert {q.task for q in questions} == set(TASKS)


@pytest.mark.parametrize(("line", "message"), [
    ('{"question_id": 2', "line 2: not readable as JSON"), ("[1]", r"line 2: expected a JSON object, found \[1\]"),
    ('{"category": "qa", "turns": ["a"]}', "line 2: field 'question_id': expected an integer or a string, found None"),
    ('{"question_id": 1, "category": "qa", "turns": ["a"]}', "line 2: field 'question_id': 1 is taken"),
    ('{"question_id": 2, "turns": ["a"]}', "line 2: field 'category' is missing"),
    ('{"question_id": 2, "category": "poems", "turns": ["a"]}', "line 2: field 'category': 'poems' is none of .*rag"),
    ('{"question_id": 2, "category": "qa"}', "line 2: field 'turns' is missing"),
    ('{"question_id": 2, "category": "qa", "turns": []}', "line 2: field 'turns': expected a list of at least one"),
    ('{"question_id": 2, "category": "qa", "turns": ["a", 3]}', "line 2: field 'turns'"),
    ('{"question_id": 2, "category": "qa", "turns": ["a\\ud83d"]}', "line 2: field 'turns': holds half of a surrogate"),
    ('{"question_id": 2, "category": "qa", "turns": "a"}', "line 2: field 'turns': expected a list")])
def test_bad_questions_are_refused_by_line_and_field(tmp_path, line, message):
    path = write_questions(tmp_path / "q.jsonl", question(1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=message):
        read_questions(path)


def test_files_without_questions_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "q.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(tmp_path / "q.jsonl")


def test_a_limit_counts_for_each_task_and_spreads_over_it():
    questions = [Question(i, CATEGORIES[i // 10], ("a",)) for i in range(130)]
    assert [q.id for q in choose(questions, ("mt", "rag"), 4)] == [0, 20, 40, 60, 120, 122, 125, 127]
    assert [q.id for q in choose(questions, ("qa",), 40)] == list(range(100, 110))
    assert choose(questions, TASKS, None) == questions
    with pytest.raises(UserError, match="no question of rag; it has some of mt"):
        choose(questions[:20], ("rag",), None)


def test_answers_have_spec_benchs_format(tmp_path):
    with store(tmp_path / "a") as answers:
        answers.add("sparse", answer(7, turns=["x", "y"], decoding_steps=[3, 1], new_tokens=[6, 2],
                                     wall_time=[1.5, 1.0], prefill_time=[0.5, 0.25], finish_reasons=["eos", "length"]))
    (line,) = (tmp_path / "a" / "sparse.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert set(record) == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
    assert (record["question_id"], record["category"], record["model_id"]) == (7, "qa", "toy/sparse")
    (choice,) = record["choices"]
    assert choice == {"index": 0, "turns": ["x", "y"], "decoding_steps": [3, 1], "new_tokens": [6, 2],
                      "wall_time": [1.5, 1.0], "accept_lengths": [2, 2, 1], "union_shares": [0.25],
                      "prefill_time": [0.5, 0.25], "finish_reasons": ["eos", "length"]}
    assert (tmp_path / "a" / "dense.jsonl").read_text() == ""


def test_a_folder_is_gone_on_with(tmp_path):
    with store(tmp_path) as answers:
        answers.add("dense", answer(1))
        answers.add("sparse", answer(1))
        answers.add("dense", answer("two"))
        answers.skip(Skipped(3, "rag", 1, 99, 96))
    notes = []
    with store(tmp_path, notes) as again:
        assert again.answers == {"dense": {1: answer(1), "two": answer("two")}, "sparse": {1: answer(1)}}
        assert again.skipped == {3: Skipped(3, "rag", 1, 99, 96)} and notes == []
        again.add("sparse", answer("two"))
    assert store(tmp_path).answers["sparse"] == {1: answer(1), "two": answer("two")}


@pytest.mark.parametrize("cut", [1, 2, 40, "zeros"])
def test_a_torn_last_line_is_taken_out(tmp_path, cut):
    with store(tmp_path) as answers:
        answers.add("dense", answer(1))
        answers.add("dense", answer(2))
    path = tmp_path / "dense.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + bytes(20) + b"\n" if cut == "zeros" else whole[:-cut])
    notes = []
    with store(tmp_path, notes) as again:
        assert again.answers["dense"] == {1: answer(1)}
        assert len(notes) == 1 and "dense.jsonl: its last line was cut off" in notes[0]
        assert path.read_bytes() == whole[:first]
        again.add("dense", answer(2))
    assert store(tmp_path).answers["dense"] == {1: answer(1), 2: answer(2)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"max_tokens": 9}, "max_tokens 8, now it is 9"), ({"modes": ["sparse"]}, "modes"),
    ({"tree_size": 32}, "tree_size None, now it is 32"),
    ({"artifact": "other"}, "artifact 'toy'"), ({"new": 1}, "new None, now it is 1")])
def test_other_settings_are_refused(tmp_path, changes, message):
    store(tmp_path, max_tokens=5)  # without answers, settings may still change
    with store(tmp_path) as answers:
        answers.add("dense", answer(1))
    with pytest.raises(UserError, match=message):
        store(tmp_path, **changes)


def test_other_folders_and_damaged_lines_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no settings.json, so it is no folder of answers"):
        store(tmp_path / "other")
    with pytest.raises(UserError, match="cannot be used as a folder"):
        store(tmp_path / "other" / "notes.txt")
    with store(tmp_path / "a") as answers:
        answers.add("dense", answer(1))
    path = tmp_path / "a" / "dense.jsonl"
    good = path.read_bytes()
    for damaged, message in ((b"{}\n" + good, "line 1: not a line"), (b"x\n" + good, "line 1: not a line"),
                             (good + good, "line 2: question 1 was answered"),
                             (good.replace(b"[1.5]", b"[1.5, 2]"), "lists of different lengths")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            store(tmp_path / "a")
