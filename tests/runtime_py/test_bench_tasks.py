"""The benchmark's tasks on the compiled demo model: what passes run, what they are said to read, the whole command."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import build as compiler
from blockffn_mlc.errors import UserError
from runtime_py.bench.measure import Setup, Subject
from runtime_py.bench.tasks import MODES, Task
from runtime_py.cli import main
from runtime_py.tvm_runtime import set_threads

ROOT = Path(__file__).resolve().parents[2]
DEPTH = 5


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo with its draft."""
    folder = tmp_path_factory.mktemp("bench") / "demo"
    assert compiler.main(["-o", str(folder), "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def subject(demo):
    subject = Subject(Setup(str(demo), set_threads(None), tree_size=4))
    tasks = [Task("tg", 6, DEPTH, mode) for mode in MODES]
    assert subject.prepare(tasks)["draft"] == "eagle"
    return subject


@pytest.fixture
def calls(subject, monkeypatch):
    """What the library is asked to compute: (tokens, dense), and the tokens."""
    found, library = [], subject.engine.library

    def noted(name, count):
        call = getattr(library, name)
        monkeypatch.setattr(library, name, lambda *arguments, **options: [
            found.append((count(*arguments, **options), options["dense"])), call(*arguments, **options)][1])

    noted("forward", lambda ids, *_, **__: ids.tolist())
    noted("step", lambda token, *_, **__: [token])
    return found


def test_a_prompt_is_read_chunk_by_chunk(subject, calls, monkeypatch):
    monkeypatch.setitem(vars(subject.engine.artifact), "prefill_chunk_size", 8)
    sparse, dense = (subject.measure(Task("pp", 20, DEPTH, mode), 1) for mode in ("sparse", "dense"))
    assert [(len(ids), dense) for ids, dense in calls] == [(n, dense) for dense in (False, True) for n in (8, 8, 4)]
    assert sum((ids for ids, _ in calls[:3]), []) == subject._text.part(DEPTH + 20, 20).tolist()
    assert sparse.passes == dense.passes == 3 and sparse.seconds > 0
    assert 0 < sparse.active < sparse.union < 1 and (sparse.active, sparse.union) == (dense.active, dense.union)
    assert sparse.weight_bytes < dense.weight_bytes and sparse.operations < dense.operations


def test_bytes_of_weights_follow_the_union(subject):
    """Everything but the embedding and the experts is read once; of the experts the union."""
    sparse, dense = (subject.measure(Task("chunk", 3, DEPTH, mode), 1) for mode in ("sparse", "dense"))
    weights, count = subject.engine.artifact.weights.values(), subject.engine.artifact.config.num_experts
    expert_bytes = sum(weight.nbytes for weight in weights if weight.ndim > 3 and len(weight) == count)
    assert dense.weight_bytes - sparse.weight_bytes == pytest.approx(expert_bytes * (1 - sparse.union))
    config = subject.engine.artifact.config
    pairs = 3 * config.num_experts * config.num_hidden_layers * 2 * config.hidden_size * config.expert_size
    assert dense.operations - sparse.operations == pytest.approx(2 * pairs * (1 - sparse.active))


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_decoding_is_a_pass_per_token_of_the_models_own_text(subject, calls, mode):
    task = Task("tg", 6, DEPTH, mode)
    samples = [subject.measure(task, turn) for turn in (1, 2)]
    own = subject._continuation(task)
    assert calls[-6:] == [([token], mode == "dense") for token in own[:6]] and samples[0].passes == 6
    assert samples[0].union == samples[0].active > 0 and samples[0].accept_length is None
    one = subject.measure(Task("chunk", 1, DEPTH, mode), 1)
    if mode == "dense":
        assert samples[0].weight_bytes == 6 * one.weight_bytes
    text = subject.engine.generate(subject._text.part(0, DEPTH).tolist(), 7, draft="none")
    list(text)
    assert text.ids == own[:len(text.ids)]


@pytest.mark.parametrize("draft", ["eagle", "ngram", "scripted"])
def test_speculative_decoding_decodes_the_same_text_in_fewer_passes(demo, draft):
    setup = Setup(str(demo), set_threads(None), draft=draft, tree_size=4, accept_length=4.0)
    subject, task = Subject(setup), Task("tg", 12, DEPTH, "speculative")
    assert subject.prepare([task])["draft"] == draft
    sample = subject.measure(task, 1)
    assert sample.accept_length == pytest.approx(12 / sample.passes) and sample.operations is None
    assert sample.weight_bytes / sample.passes <= subject.measure(Task("chunk", 64, DEPTH, "dense"), 1).weight_bytes
    if draft == "scripted":  # without errors
        assert sample.passes == 3 and sample.union > sample.active
    assert [session.length for session in subject._sessions.values()] == [DEPTH] * len(subject._sessions)


def test_scripted_drafts_refuse_what_their_trees_cannot_bring(demo):
    subject = Subject(Setup(str(demo), set_threads(None), draft="scripted", tree_size=2))
    with pytest.raises(UserError, match="--accept-length: expected 1 to 2 new tokens per pass"):
        subject.prepare([Task("tg", 12, DEPTH, "speculative")])


def test_a_text_is_fed(demo, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("And it came to pass, that the sons of men")
    subject, task = Subject(Setup(str(demo), set_threads(None), text=str(text))), Task("tg", 30, DEPTH, "sparse")
    ids = subject.engine.encode(text.read_text())
    assert subject._continuation(task) == np.resize(ids[DEPTH:] + ids[:DEPTH], 31).tolist()
    assert subject.prepare([task])["text"] == f"the text of {text}"
    assert subject.measure(task, 1).passes == 30
    text.write_text("")
    with pytest.raises(UserError, match="holds no text"):
        Subject(Setup(str(demo), set_threads(None), text=str(text)))


def test_all_modes_from_the_command_line(demo, tmp_path):
    picture = tmp_path / "report.html"
    command = [sys.executable, "-m", "runtime_py", "bench", demo, "-p", "9", "-n", "6", "--chunks", "1,3",
               "--depth", "0,4", "--modes", ",".join(MODES), "--tree-size", "4", "--threads", "1,2", "-r", "1", "-o",
               "jsonl", "--plot", picture]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"BLOCKFFN_CACHE": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [(f"{name} @ d{depth}", mode, threads) for depth in (0, 4) for name, mode in (
        ("pp9", "dense"), ("pp9", "sparse"), ("tg6", "dense"), ("tg6", "sparse"), ("tg6", "speculative"),
        ("chunk1", "dense"), ("chunk1", "sparse"), ("chunk3", "dense"), ("chunk3", "sparse")) for threads in (1, 2)]
    assert [(record["test"], record["mode"], record["threads"]) for record in records] == expected
    for record in records:
        assert len(record["seconds"]) == record["rounds"] == 1 and min(record["seconds"]) > 0
        assert len(record["artifact_digest"]) == 64 and record["tvm"] and record["device"] == "cpu"
        assert record["peak_memory_bytes"] > record["weight_bytes"] and record["load_s"] > 0 < record["first_pass_s"]
        assert record["roof_gb_per_s"] > 0 < record["roof_gop_per_s"]
        assert (record["accept_length"] is None) == (record["mode"] != "speculative")
    assert {record["draft"] for record in records} == {None, "eagle"}
    assert len({(record["threads"], record["roof_gb_per_s"], record["roof_gop_per_s"]) for record in records}) == 2
    assert picture.read_text().count("chunk3 @ d4") == 4
    rounds = [done.stderr.index(text) for text in ("2 thread(s)", "warm up", "round 1 of 1")]
    assert all(a < b for a, b in pairwise(rounds))


@pytest.mark.parametrize(("options", "message"), [
    (["--depth", "1000"], "pp128 @ d1000: takes 1128 tokens, the context window has 1024"),
    (["--chunks", "600"], "chunk600 @ d64: one pass takes at most 512 tokens"),
    (["--device", "toaster"], "device 'toaster': expected cpu"),
    (["--modes", "speculative", "--tree-size", "65"], "expected 1 to 64")])
def test_what_cannot_be_measured_is_one_sentence(demo, capsys, options, message):
    assert main(["bench", str(demo), "--threads", "1", *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")
