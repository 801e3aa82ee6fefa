"""``build.py --emit onnx``: what it writes, and what it says of what it cannot do."""

import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import safetensors.numpy
from building import build
from checkpoints import GQA, write_random_checkpoint
from compiled import nmse, oracle

from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.onnx import export
from blockffn_mlc.onnx.session import OnnxSession

IDS = np.arange(3, 20)


def emit(model, out, *options, check=True):
    return build("--emit", "onnx", "--model", model, "-o", out, *options, check=check)


def test_the_folder(checkpoint, tmp_path):
    """Large tensors beside the model, each where runtimes can map it; what is written again replaces it."""
    (checkpoint / "tokenizer_config.json").write_text("{}")
    out, options = tmp_path / "out", ["--quantization", "q0f32", "--json"]
    planned = json.loads(emit(checkpoint, out, *options, "--dry-run").stdout)
    assert not out.exists()
    summary = json.loads(emit(checkpoint, out, *options).stdout)
    assert summary == planned
    assert summary["inputs"] == ["input_ids", "attention_mask", "position_ids", "past_key_values.N.latent"]
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.onnx", "model.onnx_data",
                                                           "tokenizer_config.json"]
    model = onnx.load(out / "model.onnx", load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert len(outside) > 10 and (out / "model.onnx").stat().st_size < 300_000
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    assert all(place["location"] == "model.onnx_data" and int(place["offset"]) % 4096 == 0 for place in places)
    assert [value.name for value in model.graph.input][:3] == summary["inputs"][:3]
    assert [value.name for value in model.graph.output][0] == "logits"
    expected, _ = oracle(open_checkpoint(checkpoint), IDS)
    assert nmse(OnnxSession(out).forward(IDS[None])[0][0], expected) <= 1e-9
    emit(checkpoint, out, "--quantization", "q0f16")
    assert {rows.dtype for rows in OnnxSession(out).cache.values()} == {np.dtype("float16")}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_configuration_is_read_again(tmp_path):
    config = replace(GQA, rope_scaling_factor=2.0)
    write_random_checkpoint(tmp_path / "model", config)
    emit(tmp_path / "model", tmp_path / "out", "--quantization", "q0f32")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert type(config).from_file(tmp_path / "out" / "config.json") == config


def test_an_artifact_and_an_export_replace_each_other_but_nothing_else(checkpoint, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    result = emit(checkpoint, theirs, check=False)
    assert result.returncode == 1 and f"-o {theirs}: folder is not empty" in result.stderr
    out = tmp_path / "out"
    out.mkdir()
    (out / "mlc-chat-config.json").write_text('{"blockffn": {}}')
    emit(checkpoint, out)
    assert (out / "model.onnx").is_file() and not (out / "mlc-chat-config.json").exists()
    build("--model", checkpoint, "--quantization", "q0f32", "-o", out, "--dry-run")


@pytest.mark.parametrize(("options", "code", "words"), [
    (["--quantization", "q4f16_1"], 1, ["--quantization q4f16_1", "4-bit", "q0f32, q0f16"]),
    (["--quantization", "q7"], 1, ["--quantization q7", "unknown format", "q0f32, q0f16"]),
    (["--target", "vulkan"], 2, ["--emit onnx", "leave --target out"]),
    (["--draft", "folder"], 2, ["--emit onnx", "leave --draft out"]),
    (["--no-mlc"], 2, ["--emit onnx", "leave --mlc out"]),
    (["--prefill-chunk", "8"], 2, ["--emit onnx", "leave --prefill-chunk out"]),
])
def test_bad_options_get_one_sentence(options, code, words, checkpoint, tmp_path):
    result = emit(checkpoint, tmp_path / "out", *options, check=False)
    assert result.returncode == code and all(word in result.stderr for word in words), result.stderr
    assert not list(tmp_path.iterdir())


def test_weights_beyond_float16_are_refused(tmp_path):
    write_random_checkpoint(tmp_path / "model", replace(GQA, num_hidden_layers=1), dtype="float32")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["model.norm.weight"][3] = 1e6
    safetensors.numpy.save_file(tensors, path)
    result = emit(tmp_path / "model", tmp_path / "out", check=False)
    assert result.returncode == 1 and "model.norm.weight: holds 1e+06" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_the_package(checkpoint, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "blockffn_mlc.onnx.export")
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "blockffn_mlc.onnx.graph")
    monkeypatch.delitem(sys.modules, "blockffn_mlc.onnx.model")
    result = emit(checkpoint, tmp_path / "out", check=False)
    assert result.returncode == 1 and "needs the Python package onnx" in result.stderr
    assert "pip install 'blockffn-mlc[onnx]'" in result.stderr


@pytest.mark.parametrize(("failure", "code", "words"), [
    (OSError(28, "No space left on device"), 1, "No space left on device; free space"),
    (KeyboardInterrupt(), 130, "interrupted; nothing was written")])
def test_a_failure_leaves_nothing(failure, code, words, checkpoint, tmp_path, monkeypatch):
    def fail(*_):
        raise failure

    monkeypatch.setattr(export.onnx, "save", fail)
    result = emit(checkpoint, tmp_path / "out", check=False)
    assert result.returncode == code and words in result.stderr
    assert not list(tmp_path.iterdir())
