"""The check of a device, and the benchmark of passes, on devices."""

import json
from functools import partial

import numpy as np
import pytest
from checkpoints import GQA, MLA
from counters import counter
from machine import opencl_device, vulkan_device

from runtime_py.bench import measure
from runtime_py.bench.tasks import Task
from runtime_py.cli import main
from runtime_py.devices import device as devices
from runtime_py.devices import device_facts
from runtime_py.engine import Engine
from runtime_py.selftest import checks
from runtime_py.selftest.cases import CASES
from runtime_py.selftest.checks import check_kernels
from runtime_py.selftest.memory import GUARD, Guarded
from runtime_py.tvm_runtime import set_threads

DEMO = None  # for the fixture ``built``
MLA_KERNELS, GQA_KERNELS = {"append_latent", "latent_query"}, {"append_heads"}
ARTIFACTS = {  # the device, what is built for it, and kernels among others; the demo's draft has heads as GQA
    "GQA-q0f32-opencl": (opencl_device, GQA, "q0f32", GQA_KERNELS),
    "GQA-q0f32-vulkan": (vulkan_device, GQA, "q0f32", GQA_KERNELS),
    "GQA-q0f16-vulkan": (vulkan_device, GQA, "q0f16", GQA_KERNELS),
    "GQA-q4f32_1-vulkan": (vulkan_device, GQA, "q4f32_1", GQA_KERNELS),
    "MLA-q4f16_1-vulkan": (vulkan_device, MLA, "q4f16_1", MLA_KERNELS),
    "MLA-q4f32_1-opencl": (opencl_device, MLA, "q4f32_1", MLA_KERNELS),
    "demo-q4f16_1-opencl": (partial(opencl_device, half=True), DEMO, "q4f16_1", MLA_KERNELS | GQA_KERNELS),
}


@pytest.fixture
def folder(built, device):
    return built(GQA, "q0f32", device.kind)


@pytest.fixture(scope="module")
def device(each_device):
    return each_device


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_verifies(built, name, capsys, monkeypatch):
    find, config, quantization, factories = ARTIFACTS[name]
    device = find()
    folder = built(config, quantization, device.kind)
    monkeypatch.setattr(checks, "TOKENS", (1, 14))  # every further form of a kernel is a program to compile
    assert main(["verify", str(folder), "--device", device.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == device.name and found["product"]
    names = {kernel["factory"] for kernel in found["kernels"]}
    assert names >= factories | {"argmax", "attention", "linear", "router", "sparse_up", "sparse_down", "union"}
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


def test_a_pass_is_timed_until_the_device_is_done(folder, device, monkeypatch):
    subject, order = measure.Subject(measure.Setup(str(folder), set_threads(None), device.name)), []
    task = Task("chunk", 3, 4, "dense")
    subject.measure(task, turn=0)  # fills the cache

    def noted(name, call):
        return lambda *arguments, **named: [order.append(name), call(*arguments, **named)][1]

    class Clock:
        def __init__(self):
            order.append("clock")

        @property
        def seconds(self):
            order.append("clock")
            return 1.0

    for name in ("forward", "wait"):
        monkeypatch.setattr(subject.engine.library, name, noted(name, getattr(subject.engine.library, name)))
    monkeypatch.setattr(devices, "Stopwatch", Clock)
    launches = counter(device.kind, "launches")
    sample = subject.measure(task, turn=1)
    assert order == ["wait", "clock", "forward", "wait", "clock"] and sample.seconds == 1
    assert counter(device.kind, "launches") > launches + 10
    assert sample.weight_bytes > 0 < sample.active <= sample.union


def test_tasks_on_a_device_are_reported(folder, device, capsys):
    sizes = ["-p", "5", "-n", "2", "--chunks", "1,3", "--depth", "3", "-r", "1"]
    assert main(["bench", str(folder), "--device", device.name, *sizes, "-o", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    rows = {(record["kind"], record["tokens"], record["mode"]): record for record in records}
    assert set(rows) == {(kind, tokens, mode) for kind, tokens in (("pp", 5), ("tg", 2), ("chunk", 1), ("chunk", 3))
                         for mode in ("dense", "sparse")}
    facts = device_facts(device.name)
    for record in rows.values():
        assert (record["device"], record["device_name"]) == (device.name, device.product)
        assert record["driver"] == facts["driver"]
        assert record["clock_mhz"] is None if device.kind == "vulkan" else record["clock_mhz"] > 0
        assert record["tokens_per_s"] == pytest.approx(record["tokens"] / record["seconds"][0])
    one, dense = rows["chunk", 1, "sparse"], rows["chunk", 1, "dense"]
    assert one["weight_bytes_per_pass"] < dense["weight_bytes_per_pass"]
    assert dense["weight_bytes_per_pass"] == rows["chunk", 3, "dense"]["weight_bytes_per_pass"]
