"""What build.py's options decide, and what it says of those it cannot take."""

import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from building import build
from checkpoints import MLA
from gpu_kernels import no_stock_kernels

import build as command
from blockffn_mlc import builder
from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.checkpoint.draft import Draft
from blockffn_mlc.draft_config import DraftConfig
from blockffn_mlc.layers import READ
from blockffn_mlc.mlc.kv_cache import cache_bytes
from schedules import q4
from schedules.layout import unpack_rows
from targets import find_target

WIDE_VALUES = replace(MLA, qk_nope_head_dim=16)
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
    (["--mlc-cache", "mla", "--mlc"], 1, ["--mlc-cache mla", "--mlc-cache mqa"]),
    (["--mlc-cache", "mha"], 1, ["--mlc-cache mha", "without the functions of MLC's engine", "add --mlc"]),
    (["--mlc-cache", "mla", "--model", GQA, "--target", "android"], 1, ["--mlc-cache mla", "no latent attention"]),
    (["--mlc-cache", "mqa", "--mlc", "--model", GQA], 1, ["--mlc-cache mqa", "no latent attention", "of the kind mha"]),
    (["--mlc-cache", "gqa"], 2, ["--mlc-cache", "mqa"]),
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


@pytest.mark.parametrize(("config", "target", "given", "draft", "kind"), [
    (MLA, "cpu", None, False, "mqa"), (MLA, "opencl", None, True, "mqa"), (MLA, "opencl", "mla", True, "mla"),
    (MLA, "cpu", "mha", True, "mha"), (WIDE_VALUES, "opencl", "mha", False, "mha"),
    (checkpoints.GQA, "cpu", None, True, "mha")])
def test_the_choice_of_mlcs_cache(config, target, given, draft, kind):
    """The MLA kind is the smallest one, but MLC's engine verifies no drafts with it: then there is no draft for it."""
    drafted = Draft(DraftConfig(64, 2, 96, 4, 2, 16), True, tuple(range(9, 40))) if draft else None
    with no_stock_kernels():
        plan = builder.make_plan(config, find_target(target), "q4f32_1", 64, 32, draft=drafted, mlc=True,
                                 mlc_cache=given)
    functions, weights = plan.graph.functions(), [name for name, _ in plan.graph.parameters if "key_up" in name]
    latent, heads = config.kv_lora_rank + config.qk_rope_head_dim, config.num_attention_heads
    assert plan.build.mlc_cache == kind and (plan.draft is not None) == (draft and kind != "mla")
    assert ("extend" in functions) == (kind == "mla") and ("batch_verify" in functions) == (kind != "mla")
    assert len(weights) == (config.num_hidden_layers if config.is_mla and kind == "mha" else 0)
    row = {"mla": latent, "mqa": 2 * latent, "mha": 2 * heads * max(config.qk_head_dim, config.head_dim)}[kind]
    if not config.is_mla:
        row = 2 * config.num_key_value_heads * config.head_dim
    assert cache_bytes(plan.build) == 64 * 4 * config.num_hidden_layers * row


def test_keys_of_every_head_are_of_the_absorbed_matrix(checkpoint):
    """In four bits too, where its groups lie the other way: so all kinds of cache compute the same."""
    with no_stock_kernels():
        plan = builder.make_plan(MLA, find_target("cpu"), "q4f16_1", 64, 32, activation_format="f32", mlc=True,
                                 mlc_cache="mha")
    source, parameters = open_checkpoint(checkpoint), dict(plan.graph.parameters)
    k_up, key_up = (parameters[f"layers.1.self_attn.{name}"].attrs[READ](source) for name in ("k_up", "key_up"))
    absorbed = q4.unpacked(k_up, "q4f16_1", MLA.kv_lora_rank, MLA.qk_nope_head_dim)
    assert key_up.dtype == np.float16 and np.array_equal(
        unpack_rows(key_up, MLA.qk_nope_head_dim), absorbed.astype(np.float16).swapaxes(1, 2))
