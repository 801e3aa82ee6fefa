"""Other engines on models of the same size: the models written for them, how they are driven, a whole run."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from building import build
from checkpoints import MLA, write_random_checkpoint
from compiled import nmse

from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.config import PRESETS
from blockffn_mlc.errors import UserError
from blockffn_mlc.sources import open_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import engines  # noqa: E402
import peers  # noqa: E402
from gguf_models import FORMATS, KINDS, GgufModel, Type, random_weights  # noqa: E402
from summary import to_table  # noqa: E402

# GGUF stores blocks of 32 weights.
CONFIG = replace(MLA, q_lora_rank=32, kv_lora_rank=32, expert_size=32, num_experts=8)
WITHOUT_LLAMA = ("torch", "onnx:q0f32")
needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None,
                                 reason="needs llama_cpp (tools/compile_llama.py compiles it for tests)")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "model"
    write_random_checkpoint(folder, CONFIG, dtype="float32")
    return folder


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_what_was_planned(kind, form, tmp_path):
    model = GgufModel(CONFIG, kind, form)
    path = model.write(tmp_path)
    reader = gguf.GGUFReader(path)
    planned, found = model.tensors(), {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [tensor.name for tensor in planned]
    for tensor in planned:
        stored = found[tensor.name]
        assert tuple(stored.shape)[::-1] == tensor.shape and stored.tensor_type == tensor.type
        assert stored.n_bytes == tensor.nbytes
    fields = {name.partition(".")[2]: field.contents() for name, field in reader.fields.items()}
    assert fields["block_count"] == CONFIG.num_hidden_layers and fields["vocab_size"] == CONFIG.vocab_size
    assert ("expert_count" in fields) == (kind == "moe")
    assert ("attention.kv_lora_rank" in fields) == (kind == "minicpm3")
    before = path.stat().st_mtime_ns
    assert model.write(tmp_path) == path and path.stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q8_0, Type.Q6_K, Type.F16])
def test_random_weights_have_the_size_of_trained_ones(kind):
    tensor = replace(GgufModel(CONFIG, "llama", "F16").tensors()[0], shape=(300, 256), type=kind)
    values = gguf.quants.dequantize(random_weights(np.random.default_rng(0), tensor), kind)
    assert values.size == 300 * 256 and np.isfinite(values).all()
    assert 0.8 < values.std() * 16 < 1.2 and abs(values.mean()) * 16 < 0.2


def test_the_size_is_blockffns():
    config = PRESETS["xlarge"]
    layer = 33_833_000 + config.num_experts * config.hidden_size  # attention, experts, router
    for kind, tolerance in (("llama", 0.01), ("minicpm3", 0.01), ("moe", 0.08)):
        model = GgufModel(config, kind, "Q4_0")
        weights = sum(int(np.prod(tensor.shape)) for tensor in model.tensors() if tensor.name.startswith("blk.7."))
        assert abs(weights / layer - 1) < tolerance
    assert (model.ffn_width, model.experts_used) == (96, 10)
    assert model.tensors()[-1].type == Type.Q6_K


@pytest.mark.parametrize(("peer", "words"), [
    ("llama:Q5_K", "Q4_0, Q8_0, F16"), ("gpt2:F16", "llama, minicpm3, moe"), ("onnx:q4f16_1", "q0f32, q0f16")])
def test_unknown_peers(peer, words, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "check_installed", lambda peer: None)
    assert peers.main(["--model", str(checkpoint), "--peers", peer, "--models", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_sizes_that_gguf_cannot_hold_and_models_without_latents():
    with pytest.raises(UserError, match="24 is no multiple"):
        GgufModel(MLA, "minicpm3", "F16")
    with pytest.raises(UserError, match="latent attention"):
        GgufModel(PRESETS["3b"], "minicpm3", "F16")


def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert peers.main(["--model", str(checkpoint), "--peers", "llama:F16", "--models", str(tmp_path)]) == 1
    assert "this machine lacks gguf" in capsys.readouterr().err


@pytest.mark.parametrize("peer", [*WITHOUT_LLAMA, *(pytest.param(f"{kind}:F16", marks=needs_llama) for kind in KINDS)])
def test_an_engine_continues_and_forgets(peer, checkpoint, tmp_path):
    """One pass over several tokens is several passes over one, also after other tokens were forgotten."""
    model = engines.write_model(peer, open_model(str(checkpoint)), str(checkpoint), tmp_path)
    engine, ids = engines._engine(engines.Setup(peer, model, 1)), [5, 9, 2, 77, 31]
    assert engine.vocabulary == CONFIG.vocab_size and engine.bytes_per_pass <= 2 * engine.weight_bytes
    engine.forward(ids[:2], every=False)
    whole = np.array(engine.forward(ids[2:], every=True))
    engine.rollback(1)
    engine.forward([60, 61], every=True)
    engine.rollback(1)
    rows = [np.array(engine.forward([token], every=True)) for token in ids[1:]]
    assert whole.shape == (3, CONFIG.vocab_size)
    assert nmse(np.concatenate(rows[1:]), whole) <= 1e-5  # llama.cpp's cache is float16
    engine.rollback(0)


def run(arguments, capsys):
    assert peers.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_run_in_turn_with_our_artifact(checkpoint, tmp_path, capsys):
    artifact, models, picture = tmp_path / "artifact", tmp_path / "models", tmp_path / "peers.png"
    build("--model", checkpoint, "--quantization", "q0f32", "--prefill-chunk", "32", "-o", artifact)
    options = ["--model", checkpoint, "--models", models, "--peers", ",".join(WITHOUT_LLAMA), "--depth", "3", "-p", "9",
               "-n", "2", "--chunks", "1,4", "-r", "2", "--threads", "1"]
    records = json.loads(run([artifact, *options, "-o", "json", "--plot", picture], capsys))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len({tuple(sorted(record)) for record in records}) == 1  # the same fields for every engine
    assert [record["test"] for record in records] == [test for test, count in (
        ("pp9 @ d3", 3), ("tg2 @ d3", 2), ("chunk1 @ d3", 3), ("chunk4 @ d3", 3)) for _ in range(count)]
    assert [record["artifact"] for record in records[:3]] == ["artifact", "PyTorch reference", "ONNX Runtime q0f32"]
    assert all(len(record["seconds"]) == 2 and record["tokens_per_s"] > 0 for record in records)
    assert {record["mode"] for record in records} == {"sparse", "dense"}
    expected = sum(open_checkpoint(checkpoint).read(name).nbytes for name in open_checkpoint(checkpoint).expected)
    assert records[1]["weight_bytes"] == expected
    heading, _, *rows = (line.strip("| ").split(" | ") for line in to_table(records).partition("\n\n")[0].splitlines())
    assert heading == ["ms", "pp9 @ d3", "tg2 @ d3, per token", "chunk1 @ d3", "chunk4 @ d3", "load", "memory"]
    assert [row[0] for row in rows] == ["artifact, sparse", "PyTorch reference, dense", "ONNX Runtime q0f32, dense"]
    assert rows[1][2] == ""  # without a cache nothing is decoded
    for record, place, tokens in ((records[0], 1, 1), (records[3], 2, 2)):
        low, high = (1e3 * value / tokens for value in sorted(record["seconds"]))
        assert rows[0][place] == f"{shown((low + high) / 2)} ({shown(low)}-{shown(high)})"


def shown(value):
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def test_an_artifact_of_another_size_is_refused(tmp_path, checkpoint, capsys, monkeypatch):
    class Other:
        config = PRESETS["small"]

    monkeypatch.setattr(peers.Artifact, "open", lambda folder: Other)
    assert peers.main(["dist/other", "--model", str(checkpoint)]) == 1
    assert "dist/other: is not of the size of --model" in capsys.readouterr().err


@needs_llama
def test_a_run_with_llama_cpp(checkpoint, tmp_path, capsys):
    table = run(["--model", checkpoint, "--models", tmp_path, "--peers", ",".join(f"{kind}:F16" for kind in KINDS),
                 "--depth", "3", "-p", "9", "-n", "2", "--chunks", "4", "-r", "1", "--threads", "1"], capsys)
    assert table.count("llama.cpp moe:F16 |") == 3 and "12.5%" in table
