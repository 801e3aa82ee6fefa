"""MLC's engine, emulated, on devices: our own kernels in the slots of its paged cache, and for choosing tokens."""

import json
from pathlib import Path

import pytest
from building import build
from machine import opencl_device, vulkan_device

from runtime_py.cli import main
from runtime_py.selftest import checks

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
DEMO = ()  # the model that is built where none is named: latent attention, and a draft model
MODELS = {  # the device, the model, its format, and the kind of MLC's cache: drafts take "mha"
    "gqa on opencl": (opencl_device, "gqa_block_linear", "q0f32", "mha"),
    "demo on opencl": (opencl_device, DEMO, "q4f32_1", "mla"),
    "gqa on vulkan": (vulkan_device, "gqa_block_linear", "q0f32", "mha"),
    "mla on vulkan": (vulkan_device, "mla_block", "q4f16_1", "mla"),
    "demo on vulkan": (vulkan_device, DEMO, "q0f32", "mha"),
}
STEPS = {"prefill", "decode", "second turn", "long prompt", "two sequences", "fork", "sampler path"}
DRAFT = {"draft states", "draft in batches", "speculate"}
CHOICES = {"choose", "choose by top p", "judge drafts"}
SAMPLER = {"multinomial", "sort_pass", "sample_top_p", "take_probs", "renormalize_top_p", "verify_drafts"}
CACHE = {"mha": {"paged_decode", "paged_prefill", "ragged_prefill", "merge_state"},
         "mla": {"latent_prefill", "latent_rows", "ragged_prefill", "merge_latents", "merge_state"}}


@pytest.mark.parametrize("name", MODELS)
def test_mlc_check_and_verify(tmp_path, capsys, monkeypatch, name):
    find, model, quantization, kind = MODELS[name]
    device = find()
    monkeypatch.setattr(checks, "TOKENS", (1, 14))  # every further form of a kernel is a program to compile
    source = ("--model", GOLDEN / model) if model else ()
    draft = ("--draft", "none" if kind == "mla" else GOLDEN / "eagle_gqa") if model or kind == "mla" else ()
    build(*source, *draft, "--quantization", quantization, "--target", device.kind, "--mlc", "-q",
          "-o", tmp_path / "model")
    assert main(["mlc-check", str(tmp_path / "model"), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == device.name
    samples = device.kind == "vulkan"  # elsewhere MLC's engine chooses tokens on the processor
    steps = {step["name"] for step in found["steps"]}
    assert steps >= STEPS and (steps >= CHOICES) == samples and ("verify a chain" in steps) == (kind == "mha")
    assert (steps >= DRAFT) == (kind == "mha")
    assert (found["functions"]["argsort_probs"] == "present") == samples
    assert (found["functions"]["extend"] == "present") == (kind == "mla")
    assert main(["verify", str(tmp_path / "model"), "--device", device.name, "--json"]) == 0
    factories = {kernel["factory"] for kernel in json.loads(capsys.readouterr().out)["kernels"]}
    assert factories >= CACHE[kind] | (SAMPLER if samples else set())
