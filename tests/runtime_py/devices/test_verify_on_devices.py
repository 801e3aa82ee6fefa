"""The check of a device, on devices."""

import json

import numpy as np
import pytest
from building import build
from checkpoints import GQA, write_random_checkpoint

from runtime_py.cli import main
from runtime_py.engine import Engine
from runtime_py.selftest import checks
from runtime_py.selftest.cases import CASES
from runtime_py.selftest.checks import check_kernels
from runtime_py.selftest.memory import GUARD, Guarded


@pytest.fixture(scope="module")
def device(each_device):
    return each_device


@pytest.fixture(scope="module")
def folder(device, tmp_path_factory):
    """A tiny model."""
    folder = tmp_path_factory.mktemp("verify-opencl")
    write_random_checkpoint(folder / "checkpoint", GQA)
    build("--model", folder / "checkpoint", "--quantization", "q0f32", "--target", device.kind, "-o",
          folder / "model", "-q")
    return folder / "model"


def test_an_artifact_verifies(folder, device, capsys, monkeypatch):
    monkeypatch.setattr(checks, "TOKENS", (1, 14))  # every further form of a kernel is a program to compile
    assert main(["verify", str(folder), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == device.name and found["product"]
    names = {kernel["factory"] for kernel in found["kernels"]}
    assert names >= {"argmax", "append_heads", "attention", "linear", "router", "sparse_up", "sparse_down", "union"}
    for kernel in found["kernels"]:
        assert kernel["problem"] is None and kernel["launches"] >= kernel["calls"] >= 2


def test_a_kernel_that_never_reaches_the_device_is_found(folder, device, monkeypatch):
    class Idle:
        def kernel(self, name):
            return lambda *arguments: None

    engine = Engine.load(folder, device=device.name)
    monkeypatch.setattr(engine, "library", Idle())
    monkeypatch.setattr(checks, "CASES", dict.fromkeys(CASES, lambda k, n: iter([[n]])))  # without results to compare
    assert {result.problem for result in check_kernels(engine)} == {"launched nothing on the device"}


def test_memory_behind_a_tensor_is_watched(device):
    content = np.arange(12, dtype=np.float32).reshape(3, 4)
    guarded = Guarded(device, content)
    inside, intact = guarded.read()
    assert np.array_equal(inside, content) and intact and not guarded.changed()
    copy_in = device.inputs(((content.nbytes + GUARD,),), "uint8")
    copy_in.arrays[0][...] = device.host(guarded._memory)
    copy_in.arrays[0][content.nbytes] ^= 1
    copy_in.send()
    guarded._memory = copy_in.tensors[0]
    inside, intact = guarded.read()
    assert np.array_equal(inside, content) and not intact
