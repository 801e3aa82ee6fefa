"""What build.py's options decide, and what it says of those it cannot take."""

import json
import os
import platform
import sys
from pathlib import Path

import pytest
from building import build
from checkpoints import MLA

import build as command
from blockffn_mlc import builder
from blockffn_mlc.checkpoint.draft import Draft
from blockffn_mlc.draft_config import DraftConfig
from blockffn_mlc.mlc.kv_cache import cache_bytes
from targets import find_target

GQA = Path(__file__).resolve().parents[1] / "golden" / "gqa_block_linear"
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine lacks x86 instructions")


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--target", "toaster"], 1, ["--target toaster", "cpu"]),
    (["--quantization", "q3"], 1, ["--quantization q3", "q0f32"]),
    (["--cpu", "i8086x"], 1, ["--cpu i8086x", "native"]),
    (["--cpu", "i686"], 1, ["--cpu i686", "native"]),
    (["--context-window", "0"], 1, ["--context-window 0"]),
    (["--prefill-chunk", "0"], 1, ["--prefill-chunk 0"]),
    (["--model", "no/such/folder"], 1, ["no/such/folder", "demo"]),
    (["--model", "huge@random"], 1, ["huge", "xlarge"]),
    (["--context-window", "99999999"], 1, ["--context-window", "max_position_embeddings"]),
    (["--prefill-chunk", "100000"], 1, ["--prefill-chunk", "context window"]),
    (["--mlc-cache", "mla"], 1, ["--mlc-cache mla", "--mlc-cache mha"]),
    (["--mlc-cache", "mla", "--model", GQA, "--target", "opencl"], 1, ["--mlc-cache mla", "no latent attention"]),
    (["--jobs", "0"], 2, ["--jobs"]),
    (["--activations", "int4"], 2, ["--activations", "int8x2"]),
    (["--no-such-option"], 2, ["--no-such-option"]),
])
def test_bad_options_get_one_sentence(arguments, code, words, checkpoint):
    model = [] if "--model" in arguments else ["--model", checkpoint]
    result = build(*model, *arguments, "--dry-run", check=False)
    assert result.returncode == code and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_a_reader_that_left_is_no_error(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert command.main(["--list-targets"]) == 1
    assert capsys.readouterr().err == ""


@x86
@pytest.mark.parametrize(("arguments", "words"), [
    (["--quantization", "q0f16", "--activations", "int8"], ["--activations int8", "q0f16", "not 4-bit", "choose f32"]),
    (["--quantization", "q4f16_1", "--cpu", "haswell", "--activations", "int8x2"],
     ["--activations int8x2", "haswell", "dot products of bytes", "choose f32"])])
def test_activations_without_kernels_get_one_sentence(arguments, words, checkpoint):
    result = build("--model", checkpoint, *arguments, "--dry-run", check=False)
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 1 and all(word in error for word in words), result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


@x86
@pytest.mark.parametrize(("quantization", "cpu", "given", "expected"), [
    ("q4f16_1", "cascadelake", None, "int8"), ("q4f32_1", "alderlake", None, "int8"),
    ("q4f16_1", "haswell", None, "f32"), ("q0f16", "cascadelake", None, "f32"),
    ("q4f16_1", "cascadelake", "int8x2", "int8x2"), ("q4f16_1", "cascadelake", "f32", "f32"),
    ("q0f32", "haswell", "f32", "f32")])
def test_the_choice_of_activations(checkpoint, quantization, cpu, given, expected):
    options = ["--activations", given] if given else []
    result = build("--model", checkpoint, "--quantization", quantization, "--cpu", cpu, *options, "--dry-run", "--json")
    assert json.loads(result.stdout)["activations"] == expected
    plan = builder.make_plan(MLA, find_target("cpu", cpu), quantization, activation_format=given)
    assert plan.chat["blockffn"]["activations"] == expected



@x86
@pytest.mark.parametrize(("options", "name"), [([], "model-q4f16_1-cpu"),
                                               (["--activations", "f32"], "model-q4f16_1-f32-cpu")])
def test_the_default_folder_names_what_was_chosen(options, name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dist" / name).mkdir(parents=True)
    (tmp_path / "dist" / name / "precious.txt").write_text("mine")
    result = build("--model", checkpoint, "--quantization", "q4f16_1", *options, "--dry-run", check=False)
    assert result.returncode == 1 and name in result.stderr


@pytest.mark.parametrize(("target", "given", "draft", "kind"), [
    ("cpu", None, False, "mha"), ("opencl", None, True, "mha"), ("opencl", "mla", True, "mla")])
def test_the_choice_of_mlcs_cache(target, given, draft, kind):
    """The MLA kind is the smaller one, but MLC's engine verifies no drafts with it: then there is no draft for it."""
    drafted = Draft(DraftConfig(64, 2, 96, 4, 2, 16), True, tuple(range(9, 40))) if draft else None
    plan = builder.make_plan(MLA, find_target(target), "q0f32", 64, 32, draft=drafted, mlc=True, mlc_cache=given)
    functions = plan.graph.functions()
    assert plan.build.mlc_cache == kind and (plan.draft is not None) == (draft and kind == "mha")
    assert ("extend" in functions) == (kind == "mla") and ("batch_verify" in functions) == (kind == "mha")
    assert cache_bytes(plan.build) * (2 if kind == "mla" else 1) == 2 * 64 * 4 * MLA.num_hidden_layers * (
        MLA.kv_lora_rank + MLA.qk_rope_head_dim)
