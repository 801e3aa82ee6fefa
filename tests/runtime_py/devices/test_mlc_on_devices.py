"""MLC's engine, emulated, on devices: our own kernels in the slots of its paged cache, and for choosing tokens."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from building import build
from machine import opencl_device, vulkan_device

from runtime_py.bench.calls import Description
from runtime_py.cli import main
from runtime_py.selftest import checks
from schedules.tiles import GPU_TILES

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
EAGLE = GOLDEN / "eagle_gqa"
DEMO = ()  # the model that is built where none is named: latent attention, and a draft model
MODELS = {  # the device, the model, its draft, its format, and the kind of MLC's cache where that is not the default
    "gqa on opencl": (opencl_device, "gqa_block_linear", EAGLE, "q0f32", None),
    "demo on opencl": (opencl_device, DEMO, "none", "q4f32_1", "mla"),
    "gqa on vulkan": (vulkan_device, "gqa_block_linear", EAGLE, "q0f32", None),
    "mla on vulkan": (vulkan_device, "mla_block", "none", "q4f16_1", "mla"),
    "demo on vulkan": (vulkan_device, DEMO, DEMO, "q0f32", "mqa"),
}
STEPS = {"prefill", "decode", "second turn", "long prompt", "two sequences", "fork", "sampler path"}
DRAFT = {"draft states", "draft in batches", "speculate"}
CHOICES = {"choose", "choose by top p", "judge drafts"}
SAMPLER = {"multinomial", "sort_pass", "sample_top_p", "take_probs", "renormalize_top_p", "verify_drafts"}
HEADS = {"paged_decode", "paged_prefill", "ragged_prefill", "merge_state"}
CACHE = {None: HEADS | {"rope_heads"}, "mqa": HEADS | {"latent_heads", "value_up"},
         "mla": {"latent_prefill", "latent_rows", "ragged_prefill", "merge_latents", "merge_state"}}


def make_forms(monkeypatch, **changed):
    """Every further form of a kernel is a program to compile."""
    for name, tiles in GPU_TILES.items():
        monkeypatch.setitem(GPU_TILES, name, replace(tiles, **changed))


@pytest.mark.parametrize("name", MODELS)
def test_mlc_check_and_verify(tmp_path, capsys, monkeypatch, name):
    find, model, draft, quantization, kind = MODELS[name]
    device = find()
    monkeypatch.setattr(checks, "TOKENS", (1, 14))
    make_forms(monkeypatch, token_tiles=(1, 8))  # between them loops are the same
    options = {"--model": model and GOLDEN / model, "--draft": draft, "--mlc-cache": kind}
    build(*(word for option, value in options.items() if value for word in (option, value)),
          "--quantization", quantization, "--target", device.kind, "--mlc", "-q", "-o", tmp_path / "model")
    assert main(["mlc-check", str(tmp_path / "model"), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == device.name
    samples = device.kind == "vulkan"  # elsewhere MLC's engine chooses tokens on the processor
    steps = {step["name"] for step in found["steps"]}
    assert steps >= STEPS and (steps >= CHOICES) == samples and ("verify a chain" in steps) == (kind != "mla")
    assert (steps >= DRAFT) == (draft != "none")
    assert (found["functions"]["argsort_probs"] == "present") == samples
    assert (found["functions"]["extend"] == "present") == (kind == "mla")
    assert main(["verify", str(tmp_path / "model"), "--device", device.name, "--json"]) == 0
    factories = {kernel["factory"] for kernel in json.loads(capsys.readouterr().out)["kernels"]}
    assert factories >= CACHE[kind] | (SAMPLER if samples else set())


@pytest.mark.parametrize(("find", "quantization"), [(opencl_device, "q4f32_1"), (vulkan_device, "q4f16_1")],
                         ids=["opencl", "vulkan"])
def test_keys_and_values_of_every_head(tmp_path, capsys, monkeypatch, find, quantization):
    """Values are narrower than keys. Kernels have one form each here, for any number of tokens."""
    device = find()
    make_forms(monkeypatch, token_tiles=(1,), prefill_tile=0)
    build("--model", GOLDEN / "mla_block", "--draft", "none", "--quantization", quantization, "--target", device.kind,
          "--mlc", "--mlc-cache", "mha", "-q", "-o", tmp_path / "model")
    factories = {factory.name for factory in Description.load(tmp_path / "model").factories.values()}
    assert factories >= HEADS | {"linear_heads", "expanded_heads", "widen"}
    assert main(["mlc-check", str(tmp_path / "model"), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == device.name
    assert {step["name"] for step in found["steps"]} >= STEPS | {"verify a chain", "hidden states"}
