"""MLC's engine, emulated, on an OpenCL device: our own kernels in the slots of its paged cache."""

import json
from pathlib import Path

import pytest
from building import build
from machine import opencl_device

from runtime_py.cli import main

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
MODELS = {"gqa": ("gqa_block_linear", "q0f32"), "mla": ("mla_block", "q4f32_1")}


@pytest.mark.parametrize("name", MODELS)
def test_mlc_check_and_verify(tmp_path, capsys, name):
    device, (golden, quantization) = opencl_device(), MODELS[name]
    build("--model", GOLDEN / golden, "--quantization", quantization, "--target", "opencl", "--mlc", "-q",
          "-o", tmp_path / name)
    assert main(["mlc-check", str(tmp_path / name), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == device.name
    assert {"prefill", "decode", "second turn", "two sequences", "fork", "verify a chain"} <= {
        step["name"] for step in found["steps"]}
    assert main(["verify", str(tmp_path / name), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"paged_decode", "paged_prefill", "ragged_prefill", "merge_state", "apply_penalty"} <= {
        kernel["factory"] for kernel in found["kernels"]}
