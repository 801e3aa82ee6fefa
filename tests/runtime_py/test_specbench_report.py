"""Spec-Bench's figures from synthetic answers, and the formats they are printed in."""

import csv
import io
import json

import pytest

from runtime_py.specbench.answers import Answer, Skipped
from runtime_py.specbench.plot import plot_report
from runtime_py.specbench.questions import Question
from runtime_py.specbench.report import decode_rate, make_report, to_csv, to_json, to_markdown

FACTS = {"artifact": "toy", "quantization": "q0f32", "host": "here", "machine": "a processor", "threads": 2,
         "max_tokens": 8, "tree_size": None, "warnings": []}
QUESTIONS = [Question(1, "writing", ("a", "b")), Question(2, "math", ("a",)), Question(3, "qa", ("a",)),
             Question(4, "rag", ("a",))]


def answer(number, tokens, seconds, lengths, prefill=0.0, text="x", finish="eos", shares=()):
    """``tokens``, ``seconds`` of decoding: by turn."""
    turns = len(tokens)
    return Answer(number, "any", [text] * turns, [1] * turns, list(tokens), [s + prefill for s in seconds], lengths,
                  list(shares), [prefill] * turns, [finish] * turns)


@pytest.fixture
def answers():
    """Dense at 10 tokens/s in MT (question 1: two turns, question 2), at 5 in QA; sparse at 40 and 20, and at 30."""
    return {"dense": {1: answer(1, (6, 16), (0.5, 1.5), [1] * 20, 2.0), 2: answer(2, (11,), (1.0,), [1] * 10, 1.0),
                      3: answer(3, (11,), (2.0,), [1] * 10, 3.5)},
            "sparse+ngram": {1: answer(1, (6, 16), (0.25, 0.25), [2] * 10, 0.25, shares=(0.125,)),
                             2: answer(2, (11,), (0.5,), [5, 5], 0.5, shares=(0.25, 0.75)),
                             3: answer(3, (31,), (1.0,), [3] * 10, 1.0), 9: answer(9, (2,), (1.0,), [1], 1.0)}}


@pytest.fixture
def report(answers):
    return make_report(QUESTIONS, answers, {4: Skipped(4, "rag", 1, 100, 96)}, dict(FACTS))


def test_rates_leave_out_the_prefill_and_its_token():
    assert decode_rate(answer(1, (6, 16), (0.5, 1.5), [], 7.0)) == 10
    assert decode_rate(answer(1, (1, 1), (0.0, 0.0), [], 7.0)) is None
    assert decode_rate(answer(1, (1, 3), (0.0, 0.5), [], 7.0)) == 4


def test_means_are_over_questions_and_speed_ups_are_ratios_of_means(report):
    rows = {(row["mode"], row["task"]): row for row in report.rows}
    assert len(rows) == 2 * 7
    dense, sparse = (rows[mode, "mt"] for mode in ("dense", "sparse+ngram"))
    assert (dense["questions"], dense["tokens_per_s"], dense["speedup"], dense["accept_length"]) == (2, 10, 1, 1)
    assert (sparse["questions"], sparse["tokens_per_s"], sparse["speedup"]) == (2, 30, 3)
    assert sparse["tokens_per_s_std"] == pytest.approx(200 ** 0.5)
    assert sparse["accept_length"] == 30 / 12  # over passes, not over questions
    assert sparse["union_share"] == 1.125 / 3 and dense["union_share"] is None
    assert (sparse["trees"], dense["trees"]) == (3, 0)
    assert dense["whole_tokens_per_s"] == pytest.approx((22 / 6 + 11 / 2) / 2)
    assert sparse["whole_tokens_per_s"] == pytest.approx((22 / 1 + 11 / 1) / 2)
    assert sparse["whole_speedup"] == pytest.approx(sparse["whole_tokens_per_s"] / dense["whole_tokens_per_s"])
    qa = rows["sparse+ngram", "qa"]
    assert (qa["questions"], qa["tokens_per_s"], qa["tokens_per_s_std"], qa["speedup"]) == (1, 30, None, 6)
    average = rows["sparse+ngram", "average"]  # of three questions, not of two tasks
    assert (average["questions"], average["tokens_per_s"]) == (3, 30) and average["speedup"] == 30 / (25 / 3)
    assert rows["dense", "rag"]["questions"] == 0 and rows["dense", "rag"]["tokens_per_s"] is None
    assert report.tasks == ["mt", "qa", "average"] and report.modes == ["dense", "sparse+ngram"]


def test_without_dense_there_is_no_speed_up(answers):
    del answers["dense"]
    report = make_report(QUESTIONS[:3], answers, {}, dict(FACTS))
    assert {row["speedup"] for row in report.rows} == {None}
    assert "Speed-up" not in to_markdown(report) and "differs" not in to_markdown(report)


def test_remarks_name_the_questions(answers):
    answers["sparse+ngram"][2] = answer(2, (11,), (0.5,), [11], text="y")
    answers["dense"][3] = answer(3, (5,), (1.0,), [1] * 4, finish="window")
    answers["dense"][1] = answer(1, (1, 1), (0.0, 0.0), [], 1.0)
    report = make_report(QUESTIONS, answers, {4: Skipped(4, "rag", 2, 100, 96), 5: Skipped(5, "qa", 1, 99, 96)},
                         dict(FACTS))
    assert (report.different, report.cut, report.undecoded) == ([2], [3], [1])
    assert [skipped.question_id for skipped in report.skipped] == [4]
    text = to_markdown(report)
    assert "Text differs between modes: 1 question(s) (2)." in text
    assert "context window of 96 tokens: 1 question(s) (RAG 1)." in text
    assert "cut off: 1 question(s) (3)." in text and "single token: 1 question(s) (1)." in text


def test_markdown(report):
    text = to_markdown(report)
    assert "| mode | in the paper | MT | QA | Average |" in text
    assert "| dense | Baseline AR | 10.00 ± 0.00 | 5.00 | 8.33 ± 2.89 |" in text
    assert "| sparse+ngram |  | 3.00x | 6.00x | 3.60x |" in text and "| sparse+ngram |  | 2.50 | 3.00 | 2.73 |" in text
    assert "| sparse+ngram |  | 37.5% |  | 37.5% |" in text
    assert "Answered: 3 question(s) (MT 2, QA 1)." in text and "Text differs between modes: 0 question(s)." in text
    report.facts["warnings"] = ["something"]
    assert "Warning: something." in to_markdown(report)


@pytest.mark.parametrize(("size", "remark"), [
    (32, None), (8, ", but trees of 8 nodes"), (None, ", but tree sizes chosen while decoding")])
@pytest.mark.parametrize(("mode", "row", "name"), [
    ("sparse+eagle", "Ours (32-Tok)", "Ours"), ("dense+eagle", "EAGLE-2", "EAGLE-2")])
def test_the_paper_s_row_is_named_for_its_tree_size_only(answers, mode, row, name, size, remark):
    answers[mode] = answers.pop("sparse+ngram")
    report = make_report(QUESTIONS[:3], answers, {}, FACTS | {"tree_size": size})
    label = name + remark if remark else row
    assert f"| {mode} | {label} |" in to_markdown(report)
    assert {row["paper"] for row in report.rows} == {"Baseline AR", label}


def test_a_mode_without_a_tree_is_plain_decoding(answers):
    """Whatever its name says; one tree is enough, in whichever task."""
    remark = "plain decoding: no tree was verified"
    answers["sparse"] = {i: answer(i, (3,), (1.0,), [1, 1]) for i in (1, 2, 3)}
    answers["sparse+eagle"] = answers["sparse"]
    text = to_markdown(make_report(QUESTIONS[:3], answers, {}, dict(FACTS)))
    assert f"| sparse+eagle | Ours, but tree sizes chosen while decoding; {remark} | 1.00 | 1.00 | 1.00 |" in text
    assert "| sparse | Ours (1-Tok) | 1.00 |" in text and "| sparse+ngram |  | 2.50 |" in text
    assert text.count(remark) == sum(line.startswith("| sparse+eagle |") for line in text.splitlines())


def test_csv_and_json_parse_back(report):
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [(row["mode"], row["task"]) for row in rows] == [(row["mode"], row["task"]) for row in report.rows]
    for row, expected in zip(rows, report.rows):
        for name in ("questions", "tokens_per_s", "speedup", "accept_length", "whole_tokens_per_s"):
            assert row[name] == "" if expected[name] is None else float(row[name]) == expected[name]
    found = json.loads(to_json(report))
    assert found["results"] == report.rows and found["artifact"] == "toy" and found["different"] == []
    assert found["skipped"] == [{"question_id": 4, "category": "rag", "turn": 1, "prompt_tokens": 100,
                                 "context_window": 96}]


def test_nothing_answered_is_still_a_report(answers):
    report = make_report(QUESTIONS[3:], {mode: {} for mode in answers}, {4: Skipped(4, "rag", 1, 100, 96)}, dict(FACTS))
    assert "Answered: 0 question(s)." in to_markdown(report) and json.loads(to_json(report))["skipped"]
    assert len(to_csv(report).splitlines()) == 15


def test_plot(report, tmp_path):
    from matplotlib import image
    plot_report(tmp_path / "a.png", report)
    picture = image.imread(tmp_path / "a.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 300 and picture.std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
