"""MLC's engine, emulated, on devices: our own kernels in the slots of its paged cache, and for choosing tokens."""

import json
from pathlib import Path

import pytest
from building import build
from machine import opencl_device, vulkan_device

from runtime_py.cli import main
from runtime_py.selftest import checks

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
MODELS = {  # the device, the model, and what is built for it
    "gqa on opencl": (opencl_device, "gqa_block_linear", "q0f32"),
    "mla on opencl": (opencl_device, "mla_block", "q4f32_1"),
    "gqa on vulkan": (vulkan_device, "gqa_block_linear", "q0f32"),
    "mla on vulkan": (vulkan_device, "mla_block", "q4f16_1"),
}
SAMPLER = {"multinomial", "sort_pass", "sample_top_p", "take_probs", "renormalize_top_p", "verify_drafts"}


@pytest.mark.parametrize("name", MODELS)
def test_mlc_check_and_verify(tmp_path, capsys, monkeypatch, name):
    find, golden, quantization = MODELS[name]
    device = find()
    monkeypatch.setattr(checks, "TOKENS", (1, 14))  # every further form of a kernel is a program to compile
    build("--model", GOLDEN / golden, "--quantization", quantization, "--target", device.kind, "--mlc", "-q",
          "-o", tmp_path / "model")
    assert main(["mlc-check", str(tmp_path / "model"), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == device.name
    samples = device.kind == "vulkan"  # elsewhere MLC's engine chooses tokens on the processor
    assert {"prefill", "decode", "second turn", "two sequences", "fork", "verify a chain",
            *(("choose", "choose by top p", "judge drafts") if samples else ())} <= {
        step["name"] for step in found["steps"]}
    assert (found["functions"]["argsort_probs"] == "present") == samples
    assert main(["verify", str(tmp_path / "model"), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"paged_decode", "paged_prefill", "ragged_prefill", "merge_state", "apply_penalty",
            *(SAMPLER if samples else ())} <= {kernel["factory"] for kernel in found["kernels"]}
