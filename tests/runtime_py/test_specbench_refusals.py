"""What the command ``specbench`` refuses: settings that do not go together, folders of other runs, wrong usage."""


import pytest
from spec_questions import QUESTIONS, write

from runtime_py.cli import main


@pytest.mark.parametrize("options", [("--max-tokens", 7), ("--modes", "sparse"), ("--tree-size", 8),
                                     ("--mmap",)])
def test_other_settings_are_refused(specbench, options):
    specbench()
    code, out, err = specbench(*options)
    assert code == 1 and out == "" and "go on with the same settings" in err


def test_another_build_or_question_file_is_refused(specbench, artifact_folder, questions):
    specbench()
    write(questions, *QUESTIONS[:2])
    assert "holds answers with questions_digest" in specbench()[2]
    write(questions, *QUESTIONS)
    library = (artifact_folder / "lib" / "toy.so").read_bytes()
    (artifact_folder / "lib" / "toy.so").write_bytes(b"another library")
    assert "holds answers with build_digest" in specbench()[2]
    (artifact_folder / "lib" / "toy.so").write_bytes(library)
    weights = artifact_folder / "params_shard_0.bin"
    weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    assert "holds answers with build_digest" in specbench()[2]


@pytest.mark.parametrize(("options", "message"), [
    (["--modes", "sparse,sparse+eagle"], "sparse+eagle needs a draft model"),
    (["--modes", "dense,sparse", "--tree-size", "8"], "--tree-size 8: none of the modes dense, sparse drafts"),
    (["--tasks", "rag"], "no question of rag"),
    (["--plot", "a.html"], "name a .png file"), (["--questions", "none.jsonl"], "none.jsonl: cannot be read")])
def test_what_cannot_be_run_is_one_sentence(specbench, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime_py.engine.Engine.load", lambda *_, **__: pytest.fail("the work started"))
    code, out, err = specbench(*options)
    assert code == 1 and out == "" and message in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert not (tmp_path / "answers").exists()


def test_a_tree_size_that_cannot_be_is_refused_before_anything_is_written(specbench, tmp_path):
    code, out, err = specbench("--tree-size", 65)
    assert code == 1 and out == "" and "tree size: expected 1 to" in err
    assert not (tmp_path / "answers").exists()


def test_questions_need_a_tokenizer(specbench, artifact_folder):
    (artifact_folder / "tokenizer.json").unlink()
    code, out, err = specbench()
    assert code == 1 and out == "" and "has no tokenizer" in err


@pytest.mark.parametrize(("line", "message"), [
    ("specbench x", "--questions"), ("specbench x --questions q --modes dense,fast", "found 'fast'"),
    ("specbench x --questions q --tasks poems", "expected names out of mt,"),
    ("specbench x --questions q --limit 0", "positive integer"),
    ("specbench x --questions q -o xml", "invalid choice")])
def test_wrong_usage_exits_with_2(line, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and message in err
