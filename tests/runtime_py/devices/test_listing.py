"""The devices command, and devices by their number."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from opencl_scale import compile_scale

from blockffn_mlc.errors import UserError
from runtime_py.cli import main
from runtime_py.devices import Device, find_device, list_devices, listing
from runtime_py.tvm_runtime import load_runtime, physical_cores

ROOT = Path(__file__).resolve().parents[3]
MODULE = "runtime_py.devices.listing"
MEMORY = 14  # kTotalGlobalMemory of DeviceAttrKind


def test_the_processor_comes_first():
    cpu = list_devices()[0]
    assert cpu["device"] == "cpu" and cpu["compute_units"] == physical_cores() and cpu["memory_bytes"] > 1 << 28
    assert find_device("cpu").name == "cpu" and not find_device("cpu").copies


def test_facts_of_opencl_devices(device, capsys):
    assert main(["devices", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["devices"]
    assert entries == list_devices()
    names = [entry["device"] for entry in entries if entry["device"].startswith("opencl")]
    assert names == [f"opencl:{index}" for index in range(len(names))]
    found = entries[1 + device.index]
    assert found["device"] == device.name and found["name"] == device.product
    assert found["type"] in ("GPU", "CPU", "accelerator") and isinstance(found["fp16"], bool)
    assert found["driver"] and found["platform"] and found["version"].startswith("OpenCL ")
    assert found["memory_bytes"] >= found["max_allocation_bytes"] > 1 << 24
    assert found["local_memory_bytes"] >= 1 << 14 and found["max_work_group_size"] >= 1
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^{device.name} +{re.escape(found['name'])}$", shown, re.M)
    assert f"{found['max_allocation_bytes'] >> 20} MiB in one buffer" in shown
    assert f"{found['max_work_group_size']} work-items in a group" in shown and "fp16" in shown


def test_facts_of_vulkan_devices(vulkan, capsys):
    assert main(["devices", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["devices"]
    found = next(entry for entry in entries if entry["device"] == "vulkan:0")
    assert found["name"] == vulkan.product and found["driver"] and re.match(r"Vulkan 1\.\d+\.\d+$", found["version"])
    order = ["discrete GPU", "integrated GPU", "virtual GPU", "CPU", "other"]
    types = [entry["type"] for entry in entries if entry["device"].startswith("vulkan")]
    assert types == sorted(types, key=order.index)
    assert found["memory_bytes"] >= found["max_allocation_bytes"] >= 1 << 27  # Vulkan's minimum
    assert found["local_memory_bytes"] >= 1 << 14 and found["max_work_group_size"] >= 128
    assert found["push_constant_bytes"] >= 128
    features = ("fp16", "storage_16bit", "storage_8bit", "int8", "int16", "int64", "staging")
    assert all(isinstance(found[feature], bool) for feature in features)
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^vulkan:0 +{re.escape(found['name'])}$", shown, re.M) and found["driver"] in shown
    assert ("8-bit storage" in shown) == found["storage_8bit"]


def test_reasons_why_there_is_none(monkeypatch, capsys):
    def missing(kind):
        raise UserError("ninja is missing")
    monkeypatch.setattr(f"{MODULE}.load", missing)
    assert list_devices()[1] == {"device": "opencl", "unavailable": "ninja is missing"}
    monkeypatch.setattr(f"{MODULE}.load", lambda kind: None)
    monkeypatch.setattr(load_runtime(), "get_global_func", lambda *_, **__: list)
    assert main(["devices"]) == 0
    assert "opencl     unavailable: no OpenCL driver has a device here; install" in capsys.readouterr().out


def test_an_opencl_runtime_of_tvms_own_is_asked_what_it_knows(monkeypatch):
    class Found(Device):
        def __init__(self, kind, index):
            self.kind, self.index = kind, index

        exists = property(lambda self: self.index < 2)
        product = property(lambda self: f"device {self.index}")

        def attribute(self, number):
            return {MEMORY: 1 << 30}.get(number)
    Found.__abstractmethods__ = frozenset()
    monkeypatch.setattr(f"{MODULE}.load", lambda kind: None)
    monkeypatch.setattr(load_runtime(), "get_global_func", lambda *_, **__: None)
    monkeypatch.setattr(listing, "Accelerator", Found)
    assert list_devices()[1:3] == [
        {"device": f"opencl:{index}", "name": f"device {index}", "memory_bytes": 1 << 30} for index in range(2)]


TWO_DEVICES = """
import sys
import numpy as np
from runtime_py.devices import find_device, list_devices
from runtime_py.tvm_runtime import load_runtime

ffi = load_runtime()
devices = [find_device(entry["device"]) for entry in list_devices()[1:]
           if entry.get("platform") == "Portable Computing Language"]
assert len(devices) == 2 and devices[0].index + 1 == devices[1].index, devices
main = ffi.load_module(sys.argv[1])["main"]
counter = ffi.get_global_func("blockffn.opencl.memory_in_use")
values = np.arange(1000, dtype="f4")
for turn in range(3):
    for index, device in enumerate(devices):
        x, y = device.tensor(values), device.zeros((1000,), "float32")
        main(x, float(index + 2), y)
        np.testing.assert_array_equal(device.host(y), values * (index + 2))
        del x, y
        assert counter(device.index) == 0
x, y = devices[0].tensor(values), devices[1].zeros((1000,), "float32")
assert [counter(device.index) for device in devices] == [4000, 4000]
ffi.get_global_func("runtime.TVMTensorCopyFromTo")(x, y)
np.testing.assert_array_equal(devices[1].host(y), values)
"""


def test_two_devices_are_told_apart_by_number(device, tmp_path):
    """PoCL, the driver that runs on processors, shows as many as it is told to."""
    if not any(entry["platform"] == "Portable Computing Language" for entry in list_devices()[1:]):
        pytest.skip("this machine lacks a driver that can show two devices")
    library = compile_scale(tmp_path / "scale.so")
    result = subprocess.run([sys.executable, "-c", TWO_DEVICES, str(library)], cwd=ROOT, capture_output=True, text=True,
                            timeout=120, env=os.environ | {"POCL_DEVICES": "pthread basic"})
    assert result.returncode == 0, result.stderr
