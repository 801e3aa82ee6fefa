"""The command ``specbench`` on a toy model: modes that agree, interruptions, prompts that are too long."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from fake_library import FakeLibrary
from spec_questions import QUESTIONS, write
from toy import WINDOW

from runtime_py.cost_measurement import cost_table
from runtime_py.drafters.ngram import NgramDrafter
from runtime_py.specbench import run as runner
from runtime_py.tree import Tree

MODES = ("dense", "sparse", "sparse+ngram")


@pytest.fixture
def asked(monkeypatch):
    """The (question, mode, max_tokens) of every answer that is computed, in order."""
    answer, calls = runner._answer, []

    def record(engine, question, mode, max_tokens, tree_size):
        calls.append((question.id, next(name for name, known in runner.MODES.items() if known == mode), max_tokens))
        return answer(engine, question, mode, max_tokens, tree_size)
    monkeypatch.setattr(runner, "_answer", record)
    return calls


def lines(tmp_path, mode):
    return [json.loads(line) for line in (tmp_path / "answers" / f"{mode}.jsonl").read_text().splitlines()]


def test_every_mode_answers_every_question_alike(specbench, tmp_path):
    code, out, err = specbench("-o", "json")
    found = json.loads(out)
    assert code == 0 and found["different"] == found["skipped"] == found["cut"] == []
    assert "no draft model, so dense+eagle and sparse+eagle are left out" in err
    assert found["modes"] == list(MODES) and found["max_tokens"] == 6
    answers = {mode: lines(tmp_path, mode) for mode in MODES}
    for mode, records in answers.items():
        assert [(record["question_id"], record["category"]) for record in records] == [
            (question["question_id"], question["category"]) for question in QUESTIONS]
        for record, question in zip(records, QUESTIONS):
            (choice,) = record["choices"]
            turns = len(question["turns"])
            assert record["model_id"] == f"toy/{mode}"
            assert len(choice["decoding_steps"]) == len(choice["new_tokens"]) == len(choice["wall_time"]) == turns
            assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"]) - turns
            assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
            assert all(0 < first <= whole for first, whole in zip(choice["prefill_time"], choice["wall_time"]))
            assert choice["turns"] == answers["dense"][records.index(record)]["choices"][0]["turns"]
            if mode != "sparse+ngram":
                assert set(choice["accept_lengths"]) <= {1}
    rows = {(row["mode"], row["task"]): row for row in found["results"]}
    assert [rows["sparse", task]["questions"] for task in ("mt", "qa", "rag", "average")] == [2, 1, 0, 3]
    assert rows["dense", "average"]["speedup"] == 1 and rows["sparse", "qa"]["speedup"] > 0


def published_figures(records, task):
    """What Spec-Bench's evaluation/speed.py computes from the lines of a file for one of its tasks: the mean over
    questions of all turns' tokens by all turns' wall time, and the mean of all accept lengths, which it puts end to
    end."""
    mt_bench = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
    speeds, accept_lengths = [], []
    for record in records:
        if task == "overall" or (record["category"] in mt_bench if task == "mt_bench" else record["category"] == task):
            choice = record["choices"][0]
            speeds.append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
            accept_lengths.extend(choice["accept_lengths"])
    assert all(type(length) is int for length in accept_lengths)
    return sum(speeds) / len(speeds), sum(accept_lengths) / len(accept_lengths)


def test_spec_benchs_own_figures_come_out_of_the_files(specbench, tmp_path):
    rows = {(row["mode"], row["task"]): row for row in json.loads(specbench("-o", "json")[1])["results"]}
    for mode in MODES:
        for task, published in (("mt", "mt_bench"), ("qa", "qa"), ("average", "overall")):
            row = rows[mode, task]
            assert (row["whole_tokens_per_s"], row["accept_length"]) == pytest.approx(
                published_figures(lines(tmp_path, mode), published))
        assert rows[mode, "average"]["whole_speedup"] == pytest.approx(
            rows[mode, "average"]["whole_tokens_per_s"] / rows["dense", "average"]["whole_tokens_per_s"])


@pytest.fixture
def dense_passes(monkeypatch):
    """For every pass of the toy library, whether it was dense."""
    forward, kinds = FakeLibrary.forward, []

    def record(self, *arguments, dense=False):
        kinds.append(dense)
        return forward(self, *arguments, dense=dense)
    monkeypatch.setattr(FakeLibrary, "forward", record)
    return kinds


def test_dense_modes_run_the_dense_pass(specbench, tmp_path, dense_passes):
    for mode in MODES:
        dense_passes.clear()
        assert specbench("--modes", mode, "--answers", tmp_path / mode)[0] == 0
        assert set(dense_passes) == {mode == "dense"}


def test_dense_passes_have_costs_of_their_own(engine, dense_passes, monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path))
    monkeypatch.setattr("runtime_py.engine.cost_table", cost_table)
    monkeypatch.setattr("runtime_py.cost_measurement._STEADY", math.inf)  # kept, whatever else the machine does
    for dense in (False, True):
        dense_passes.clear()
        engine.controller(NgramDrafter(), dense=dense)
        assert set(dense_passes) == {dense}
        dense_passes.clear()
        cost_table(engine, NgramDrafter(), dense=dense)
        assert dense_passes == []  # kept
    assert len(list((tmp_path / "costs").iterdir())) == 2


def test_modes_take_turns_and_one_question_warms_up(specbench, asked):
    specbench("--tree-size", 4)
    assert asked[:3] == [(81, mode, 6) for mode in MODES]  # not counted
    assert [call[:2] for call in asked[3:]] == [
        *((81, mode) for mode in MODES), *((82, mode) for mode in (*MODES[1:], MODES[0])),
        *(("q3", mode) for mode in (MODES[2], *MODES[:2]))]
    asked.clear()
    code, out, _ = specbench("--tree-size", 4)
    assert code == 0 and asked == [] and "Answered: 3 question(s) (MT 2, QA 1)." in out


def test_an_interrupted_run_goes_on_without_repeating(specbench, asked, tmp_path, monkeypatch):
    answer = runner._answer

    def interrupted(*arguments):
        if len(asked) == 3 + 4:  # warm-up, one question, one mode of the next
            raise KeyboardInterrupt
        return answer(*arguments)
    monkeypatch.setattr(runner, "_answer", interrupted)
    code, out, err = specbench()
    assert code == 130 and out == "" and "the same command goes on from there" in err
    before = {mode: lines(tmp_path, mode) for mode in MODES}
    assert {mode: len(found) for mode, found in before.items()} == {"dense": 1, "sparse": 2, "sparse+ngram": 1}
    with (tmp_path / "answers" / "sparse.jsonl").open("ab") as file:
        file.write(b'{"question_id": 82, "cate')  # the process ended while it wrote
    monkeypatch.setattr(runner, "_answer", answer)
    asked.clear()
    code, out, err = specbench()
    assert code == 0 and "sparse.jsonl: its last line was cut off" in err
    assert [call[:2] for call in asked] == [*((82, mode) for mode in MODES), (82, "sparse+ngram"), (82, "dense"),
                                            *(("q3", mode) for mode in (MODES[2], *MODES[:2]))]
    for mode in MODES:
        after = lines(tmp_path, mode)
        assert after[:len(before[mode])] == before[mode]
        assert [record["question_id"] for record in after] == [81, 82, "q3"]


def test_more_questions_continue_a_folder(specbench, asked):
    assert "Answered: 1 question(s) (MT 1)." in specbench("--tasks", "mt", "--limit", 1)[1]
    asked.clear()
    assert "Answered: 3 question(s) (MT 2, QA 1)." in specbench()[1]
    assert {call[0] for call in asked} == {82, "q3"}
    assert "Answered: 1 question(s) (QA 1)." in specbench("--tasks", "qa")[1]


def test_prompts_that_do_not_fit_are_skipped_not_cut(specbench, questions, tmp_path):
    long = [{"question_id": 1, "category": "rag", "turns": ["x" * 200]},
            {"question_id": 2, "category": "coding", "turns": ["in", "x" * 85]}]
    write(questions, *long, *QUESTIONS)
    code, out, _ = specbench("-o", "json")
    found = json.loads(out)
    assert code == 0
    assert [(s["question_id"], s["turn"], s["context_window"]) for s in found["skipped"]] == [
        (1, 1, WINDOW), (2, 2, WINDOW)]
    assert found["skipped"][0]["prompt_tokens"] > 200 and found["skipped"][1]["prompt_tokens"] >= WINDOW
    assert [len(lines(tmp_path, mode)) for mode in MODES] == [3, 3, 3]
    assert [json.loads(line) for line in (tmp_path / "answers" / "skipped.jsonl").read_text().splitlines()] == (
        found["skipped"])
    code, out, _ = specbench()
    assert f"does not fit into the context window of {WINDOW} tokens: 2 question(s) (RAG 1, MT 1)." in out
    assert "Answered: 3 question(s) (MT 2, QA 1)." in out and "| RAG" not in out


def test_answers_that_the_window_cuts_off_are_named(specbench, questions):
    write(questions, {"question_id": 5, "category": "rag", "turns": ["x" * 80]})
    code, out, _ = specbench("--max-tokens", 90)
    assert code == 0 and "the end of the context window cut off: 1 question(s) (5)." in out


def test_different_text_is_counted(specbench, monkeypatch):
    answer = runner._answer

    def differs(engine, question, mode, *others):
        found = answer(engine, question, mode, *others)
        return replace(found, turns=["?"]) if (question.id, mode.draft) == (82, "ngram") else found
    monkeypatch.setattr(runner, "_answer", differs)
    code, out, _ = specbench()
    assert code == 0 and "Text differs between modes: 1 question(s) (82)." in out


def test_formats_and_plot(specbench, tmp_path):
    text = specbench("--plot", tmp_path / "a.png")[1]
    assert "Warning: other programs kept 25% of the machine busy" in text
    assert "| mode | in the paper | MT | QA | Average |" in text and "| dense | Baseline AR | 1.00x |" in text
    assert (tmp_path / "a.png").is_file()
    rows = list(csv.DictReader(io.StringIO(specbench("-o", "csv")[1])))
    assert len(rows) == 3 * 7 and {row["mode"] for row in rows} == set(MODES)


def test_a_mode_that_drafted_nothing_is_named(specbench, monkeypatch, tmp_path):
    """One node is the root alone: nothing to verify."""
    found = specbench("--tree-size", 1, "--answers", tmp_path / "plain")[1]
    assert "| sparse+ngram | plain decoding: no tree was verified |" in found
    assert "| sparse | Ours (1-Tok) |" in found and found.count("no tree was verified") == found.count("| sparse+ngram")
    monkeypatch.setattr(NgramDrafter, "draft", lambda self, root, shape: Tree([root, 1], [-1, 0]))
    assert "no tree was verified" not in specbench("--tree-size", 4)[1]


def test_answers_are_kept_under_the_artifacts_name(run, questions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("specbench", "--questions", questions, "--max-tokens", 2, "--modes", "sparse")[0] == 0
    assert (tmp_path / "specbench-toy" / "sparse.jsonl").is_file()
    code, out, err = run("specbench", "--questions", questions, "--answers", "")
    assert code == 1 and out == "" and "no folder of answers" in err


def test_progress_is_shown_on_a_terminal_only(specbench, monkeypatch):
    assert "3/3" not in specbench("--modes", "sparse")[2]
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    code, out, err = specbench("--modes", "sparse")
    assert code == 0 and "3/3" in err and "3/3" not in out
