"""The command line: results on stdout, everything else on stderr, exit codes 0, 1, 2."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_library import FakeLibrary
from toy import WINDOW, write_artifact

from runtime_py.cli import main
from runtime_py.engine import Engine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ids_file(tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(list(range(3, 40))))
    return tmp_path / "ids.json"


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_alone_it_explains_itself():
    result = python("-m", "runtime_py")
    assert result.returncode == 0 and result.stderr == ""
    assert all(word in result.stdout for word in ("generate", "score", "inspect", "chat", "build.py"))


@pytest.mark.parametrize("line", ["generate", "generate x", "nonsense", "score x --ids a --text-file b",
                                  "generate x --prompt a --max-tokens 0", "generate x --prompt a --temperature hot"])
def test_wrong_usage_exits_with_2(line, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and "usage:" in err


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_help_names_every_kind_of_device(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "cpu, opencl, vulkan, cuda, metal or KIND:N" in help_text


def test_bad_input_is_one_sentence_and_exits_with_1(tmp_path):
    result = python("-m", "runtime_py", "generate", str(tmp_path / "none"), "--prompt", "x")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_neither_torch_nor_the_compiler_is_imported(tmp_path):
    """Loads TVM's runtime for real; only the library file is refused."""
    write_artifact(tmp_path / "toy")
    code = ("import sys\nfrom runtime_py import Engine\nfrom runtime_py.cli import main\n"
            f"assert main(['generate', {str(tmp_path / 'toy')!r}, '--prompt', 'x']) == 1\n"
            "found = {'tvm_ffi', 'torch', 'tvm', 'matplotlib'} & set(sys.modules)\nassert found == {'tvm_ffi'}, found")
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "not a usable model library" in result.stderr


def test_torch_can_still_be_imported_afterwards():
    pytest.importorskip("torch")
    code = "from runtime_py.tvm_runtime import load_runtime\nload_runtime()\nimport torch\ntorch.zeros(1)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_generate_streams_text_and_reports_on_stderr(run, artifact_folder):
    code, out, err = run("generate", "--prompt", "the", "--max-tokens", 5)
    generation = Engine.load(artifact_folder).generate("the", 5)
    list(generation)
    assert code == 0 and out == generation.text + "\n"
    assert "prefill 2 tokens" in err and "decode 5 tokens" in err and "peak memory" in err


def test_generate_json(run, artifact_folder, tmp_path):
    (tmp_path / "p.txt").write_text("the", encoding="utf-8")
    code, out, err = run("generate", "--prompt-file", tmp_path / "p.txt", "--max-tokens", 5, "--json",
                         "--temperature", 2, "--seed", 3)
    found = json.loads(out)
    assert code == 0 and err == ""
    assert set(found) == {"artifact", "text", "ids", "finish_reason", "draft", "prompt_tokens", "generated_tokens",
                          "prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_s", "passes",
                          "drafted_tokens", "verified_tokens", "accepted_tokens", "mean_accept_length",
                          "union_share", "draft_s", "verify_s", "overhead_s", "peak_memory_bytes", "load_s", "device",
                          "threads", "sampling"}
    assert len(found["ids"]) == found["generated_tokens"] == 5 and found["artifact"] == "toy"
    assert found["sampling"]["seed"] == 3 and found["sampling"]["temperature"] == 2


def test_the_seed_drawn_for_the_user_repeats_the_text(run):
    found = json.loads(run("generate", "--prompt", "the", "--max-tokens", 8, "--temperature", 3, "--json")[1])
    again = json.loads(run("generate", "--prompt", "the", "--max-tokens", 8, "--temperature", 3, "--json",
                           "--seed", found["sampling"]["seed"])[1])
    assert again["ids"] == found["ids"]


def test_drafts_change_figures_but_not_the_text(run):
    # A penalty below 1 makes the toy repeat itself.
    line = ("generate", "--prompt", "the ing", "--max-tokens", 12, "--repetition-penalty", 0.1, "--json")
    without, drafted = (json.loads(run(*line, *options)[1]) for options in (
        ("--draft", "none"), ("--draft", "ngram", "--tree-size", 6)))
    assert without["ids"] == drafted["ids"] and (without["draft"], drafted["draft"]) == ("none", "ngram")
    assert without["passes"] == 11 and without["drafted_tokens"] == 0 and without["union_share"] is None
    assert drafted["passes"] + drafted["accepted_tokens"] == 11 and drafted["drafted_tokens"] > 0
    assert drafted["mean_accept_length"] == 11 / drafted["passes"] and 0 < drafted["union_share"] <= 1
    err = run(*line[:-1], "--draft", "ngram", "--tree-size", 6)[2]
    assert (f"drafted {drafted['drafted_tokens']} tokens, verified {drafted['verified_tokens']}, "
            f"accepted {drafted['accepted_tokens']}") in err
    assert all(word in err for word in ("new tokens per pass", "of the experts", "draft ", "verify ", "overhead "))


@pytest.mark.parametrize(("options", "message"), [
    (["--draft", "eagle"], "has no draft model, which draft 'eagle' needs; use 'ngram'"),
    (["--draft", "none", "--tree-size", 4], "4 nodes need a drafter"),
    (["--tree-size", 17], "tree size: expected 1 to 16 nodes, which this artifact allows, found 17")])
def test_drafts_that_an_artifact_cannot_have_are_refused(run, options, message):
    for command in (["generate", "--prompt", "the"], ["chat"]):
        code, out, err = run(*command, *options)
        assert code == 1 and out == "" and message in err and len(err.splitlines()) == 1


def test_generate_takes_ids_as_they_are_without_a_tokenizer(run, artifact_folder, ids_file):
    (artifact_folder / "tokenizer.json").unlink()
    code, out, _ = run("generate", "--ids", ids_file, "--max-tokens", 3)
    generation = Engine.load(artifact_folder).generate(list(range(3, 40)), 3)
    assert code == 0 and out.split() == [str(token.id) for token in generation]
    code, out, err = run("generate", "--prompt", "x")
    assert code == 1 and "has no tokenizer; give token ids with --ids" in err


def test_overflow_is_an_error_before_output(run):
    code, out, err = run("generate", "--prompt", "the", "--max-tokens", WINDOW)
    assert code == 1 and out == "" and f"context window of {WINDOW} tokens" in err


@pytest.mark.parametrize("chunk", [[], ["--chunk", 5]])
def test_score_writes_arrays_and_prints_perplexity(run, artifact_folder, ids_file, tmp_path, chunk):
    outputs = ["--logits", tmp_path / "l.npy", "--router", tmp_path / "r.npy"]
    code, out, _ = run("score", "--ids", ids_file, *outputs, *chunk)
    expected = Engine.load(artifact_folder).score(list(range(3, 40)))
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), expected.logits)
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), expected.router_scores)
    assert code == 0 and out == f"perplexity {expected.perplexity:.4f} over 36 predicted tokens\n"


def test_score_refuses_outputs_it_cannot_write(run, engine, ids_file, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime_py.engine.Engine.load", lambda *_, **__: pytest.fail("the work started"))
    same = tmp_path / "a.npy"
    for outputs, message in ((["--logits", same, "--router", tmp_path / "." / "a.npy"], "need different files"),
                             (["--logits", ""], "regular file"), (["--router", tmp_path], "regular file")):
        code, out, err = run("score", "--ids", ids_file, *outputs)
        assert code == 1 and out == "" and message in err


def test_score_json_and_a_single_token(run, tmp_path):
    (tmp_path / "t.txt").write_text("the the", encoding="utf-8")
    found = json.loads(run("score", "--text-file", tmp_path / "t.txt", "--json")[1])
    assert found["tokens"] == found["predicted"] + 1 and found["perplexity"] > 1
    (tmp_path / "one.json").write_text("[5]")
    assert "n/a" in run("score", "--ids", tmp_path / "one.json")[1]
    assert json.loads(run("score", "--ids", tmp_path / "one.json", "--json")[1])["perplexity"] is None


def test_inspect_json_equals_the_router_scores(run, artifact_folder, ids_file):
    found = json.loads(run("inspect", "--ids", ids_file, "--json")[1])
    active = Engine.load(artifact_folder).score(list(range(3, 40))).router_scores != 0
    assert found["active"] == active.sum(-1).tolist() and found["experts"] == 12
    assert found["tls"] == pytest.approx(1 - active.mean()) and found["cls_8"] <= found["tls"]
    assert [layer["max_active"] for layer in found["layers"]] == active.sum(-1).max(-1).tolist()
    some = json.loads(run("inspect", "--ids", ids_file, "--json", "--threshold", 3)[1])
    assert np.sum(some["active"]) < np.sum(found["active"])


def test_a_threshold_is_a_number_from_0_up(ids_file, capsys):
    for value in ("nan", "-1", "inf"):
        with pytest.raises(SystemExit):
            main(["inspect", "x", "--ids", str(ids_file), f"--threshold={value}"])
        assert "from 0 up" in capsys.readouterr().err


def test_json_is_ascii_where_the_output_is_not_utf8(artifact_folder, fake_library, monkeypatch):
    for encoding in ("latin-1", "utf-8"):
        out = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr("sys.stdout", out)
        assert main(["inspect", str(artifact_folder), "--prompt", "\u4e16 the", "--json"]) == 0
        found = json.loads(out.buffer.getvalue().decode(encoding))
        assert "\u2581the" in found["tokens"] and (b"\\u2581" in out.buffer.getvalue()) == (encoding == "latin-1")


def test_tables_in_a_file_are_as_wide_as_they_need(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    code, out, err = run("inspect", "--prompt", "the ing")
    assert code == 0 and "Active experts per token and layer" in out and "too narrow" not in err


def test_options_without_effect_are_noted(run):
    err = run("generate", "--prompt", "the", "--max-tokens", 2, "--top-p", "0.5", "--seed", 1)[2]
    assert "note: --top-p, --seed: no effect without --temperature" in err
    assert "note" not in run("generate", "--prompt", "the", "--max-tokens", 2, "--top-p", "0.5", "--temperature", 1)[2]


def test_pinning_and_mapping_are_options(run, monkeypatch):
    pinned, mapped = [], []

    def library(artifact, device):
        mapped.append(artifact.mmap)
        return FakeLibrary(artifact, device)
    monkeypatch.setattr("runtime_py.engine.pin_threads", pinned.append)
    monkeypatch.setattr("runtime_py.engine.Library", library)
    options = ("generate", "--prompt", "the", "--max-tokens", 1)
    assert run(*options)[0] == 0 and (pinned, mapped) == ([], [False])
    assert run(*options, "--pin", "--mmap")[0] == 0 and len(pinned) == 1 and mapped == [False, True]


def test_more_threads_than_cores_are_noted(run, monkeypatch):
    monkeypatch.setattr("runtime_py.commands.common.physical_cores", lambda: 2)
    monkeypatch.setattr("runtime_py.engine.set_threads", lambda threads: threads)
    assert "3 threads share 2 core(s)" in run("generate", "--prompt", "the", "--max-tokens", 1, "--threads", 3)[2]
    assert "share" not in run("generate", "--prompt", "the", "--max-tokens", 1, "--threads", 2)[2]


def test_input_that_is_no_text_is_refused(run):
    code, out, err = run("generate", "--prompt", "a\udcff")
    assert code == 1 and out == "" and "not valid UTF-8" in err
    assert run("generate", "--prompt-file", "")[0] == 1
    code, out, err = run("chat", "--max-tokens", 2, stdin="a\udcff\n/stats\n")
    assert code == 0 and "not valid UTF-8" in err and "no answer yet" in out


@pytest.mark.parametrize(("redirection", "message"), [("> /dev/full", "No space left"), (">&-", "output is closed")])
def test_an_output_that_takes_nothing_is_named(redirection, message):
    result = subprocess.run(f"{sys.executable} -m runtime_py {redirection}", shell=True, cwd=ROOT,
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_damaged_logits_have_no_perplexity(run, ids_file, monkeypatch):
    monkeypatch.setattr("runtime_py.commands.score.token_log_probs", lambda *_: np.array([np.nan]))
    code, out, err = run("score", "--ids", ids_file, "--json")
    assert code == 1 and out == "" and "perplexity is nan" in err


def test_long_inputs_are_refused_or_split(run, engine, tmp_path):
    long = list(range(3, 203))
    (tmp_path / "long.json").write_text(json.dumps(long))
    for command in ("score", "inspect"):
        code, out, err = run(command, "--ids", tmp_path / "long.json")
        assert code == 1 and out == "" and f"200 tokens do not fit into the context window of {WINDOW}" in err
    found = json.loads(run("score", "--ids", tmp_path / "long.json", "--split", "--chunk", 7, "--json",
                           "--logits", tmp_path / "l.npy")[1])
    parts = [engine.score(long[start:start + WINDOW]) for start in range(0, 200, WINDOW)]
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), np.concatenate([part.logits for part in parts]))
    assert found["tokens"] == 200 and found["predicted"] == 197
    expected = np.exp(-np.concatenate([part.log_probs for part in parts]).mean())
    assert found["perplexity"] == pytest.approx(expected, rel=1e-12)
    found = json.loads(run("inspect", "--ids", tmp_path / "long.json", "--split", "--json")[1])
    active = np.concatenate([part.router_scores for part in parts], axis=1) != 0
    assert found["active"] == active.sum(-1).tolist()


def test_every_window_of_a_text_begins_with_bos(run, engine, tmp_path):
    (tmp_path / "long.txt").write_text("e" * 200, encoding="utf-8")
    ids = json.loads(run("inspect", "--text-file", tmp_path / "long.txt", "--split", "--json")[1])["ids"]
    letter = engine.tokenizer.encode("e")
    assert ids == [1, *letter * 95, 1, *letter * 95, 1, *letter * 10]


def test_inspect_prints_tables_and_plots(run, tmp_path):
    code, out, err = run("inspect", "--prompt", "the ing", "--plot", tmp_path / "a.html")
    assert code == 0 and "TLS" in out and "CLS_32" in out and "n/a" in out and "all" in out
    assert "wrote" in err and (tmp_path / "a.html").is_file()
    code, out, err = run("inspect", "--prompt", "the", "--plot", tmp_path / "a.gif")
    assert code == 1 and out == "" and ".png or .html" in err


def test_a_closed_pipe_and_ctrl_c_end_quietly(artifact_folder, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr("runtime_py.engine.Engine.load", interrupted)
    assert main(["generate", str(artifact_folder), "--prompt", "x"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-m", "runtime_py", "--help"], cwd=ROOT, stdout=write,
                            stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert result.stderr == ""
