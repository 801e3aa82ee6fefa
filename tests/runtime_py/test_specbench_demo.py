"""Spec-Bench on the compiled demo model, in every mode it can do."""

import json
from pathlib import Path

import build as compiler
from runtime_py.cli import main
from runtime_py.specbench.run import MODES

DRAFT = Path(__file__).resolve().parents[2] / "blockffn_mlc" / "demo" / "draft"
QUESTIONS = [{"question_id": 1, "category": "humanities", "turns": ["In the beginning", "And God said"]},
             {"question_id": 2, "category": "rag", "turns": ["And it came to pass, that " * 20]},
             {"question_id": 3, "category": "summarization", "turns": ["And it came to pass, that " * 2000]}]


def test_all_modes_give_the_same_text(tmp_path, capsys):
    demo, answers = tmp_path / "demo", tmp_path / "answers"
    assert compiler.main(["--draft", str(DRAFT), "-o", str(demo), "-q"]) == 0
    questions = tmp_path / "question.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    capsys.readouterr()
    assert main(["specbench", str(demo), "--questions", str(questions), "--max-tokens", "24", "--tree-size", "8",
                 "--answers", str(answers), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["modes"] == list(MODES)
    assert found["different"] == [] and [skipped["question_id"] for skipped in found["skipped"]] == [3]
    for mode in found["modes"]:
        records = [json.loads(line) for line in (answers / f"{mode}.jsonl").read_text().splitlines()]
        assert [(record["question_id"], len(record["choices"][0]["turns"])) for record in records] == [(1, 2), (2, 1)]
    rows = {(row["mode"], row["task"]): row for row in found["results"]}
    assert all(rows[mode, "average"]["tokens_per_s"] > 0 for mode in found["modes"])
    for mode in ("dense+eagle", "sparse+eagle", "sparse+ngram"):
        assert rows[mode, "rag"]["union_share"] > 0  # it drafted
    assert rows["dense+eagle", "average"]["accept_length"] == rows["sparse+eagle", "average"]["accept_length"] > 1
