"""Several Vulkan devices: their order, copies between them, one that does not work."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("/etc/vulkan/icd.d", "/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
LIST = """
from runtime_py.devices import list_devices
for entry in list_devices():
    if entry["device"].startswith("vulkan"):
        print(entry["device"], entry.get("type"), entry.get("unavailable"), sep="|")
"""


def driver(name):
    """The file that tells Vulkan's loader of one of Mesa's drivers."""
    found = next((path for folder in FOLDERS for path in Path(folder).glob(f"{name}_icd*.json")), None)
    if found is None:
        pytest.skip(f"this machine lacks Mesa's Vulkan driver {name}")
    return found


def only(*drivers):
    """An environment in which there are only these."""
    files = ":".join(map(str, drivers))
    return {"VK_ICD_FILENAMES": files, "VK_DRIVER_FILES": files}


@pytest.fixture
def two(tmp_path):
    """An environment with two devices of one driver, the one for processors."""
    again = tmp_path / "again.json"
    again.write_text(driver("lvp").read_text())
    return only(driver("lvp"), again)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("family", "kind"), [("NAVI21", "discrete GPU"), ("RAVEN", "integrated GPU")])
def test_gpus_come_before_processors(said, family, kind, backwards):
    """Mesa's driver for AMD shows a GPU that is not there when it is told to. The loader sorts devices as well, hence
    also backwards."""
    gpu = {"RADV_FORCE_FAMILY": family, **only(driver("lvp"), driver("radeon"))}
    listed = said(LIST, **gpu, **({"BACKWARDS": "1"} if backwards else {}))
    if len(listed) < 2:
        pytest.skip("this machine lacks a driver that shows a GPU that is not there")
    assert listed == [f"vulkan:0|{kind}|None", "vulkan:1|CPU|None"]


def test_devices_are_told_apart_by_number_and_copied_between(said, two):
    said = said("""
import numpy as np
from runtime_py.tvm_runtime import load_runtime
first, second = find_device("vulkan:0"), find_device("vulkan:1")
in_use = lambda: [counter("memory_in_use", index) for index in range(2)]
before = in_use()
x, y = first.tensor(np.arange(1000, dtype="f4")), second.zeros((1000,), "float32")
print([now - then for now, then in zip(in_use(), before)])
copy = load_runtime().get_global_func("runtime.TVMTensorCopyFromTo")
copy(x, y)
print((second.host(y) == np.arange(1000)).all())
y = second.tensor(np.full(1000, 0.5, "f4"))
copy(y, x)
print((first.host(x) == 0.5).all())
del x
print([now - then for now, then in zip(in_use(), before)])
ask(find_device, "vulkan:2")""", **two)
    assert said[:4] == ["[4000, 4000]", "True", "True", "[0, 4000]"]
    assert said[4].startswith("UserError device 'vulkan:2': there is none here")


def test_a_driver_that_fails_for_a_device_hides_no_other(said, two):
    failing = {"FAILING_CALL": "vkEnumerateDeviceExtensionProperties", "FAILING_CODE": "-1"}
    reason = r"vulkan\|None\|llvmpipe.*: Vulkan: listing a device's extensions failed: VK_ERROR_OUT_OF_HOST_MEMORY .-1."
    works, broken, values = said(LIST + 'print(vulkan.host(vulkan.zeros((2,), "float32")).tolist())', **two, **failing,
                                 FAILING_TIMES="1")
    assert works == "vulkan:0|CPU|None" and values == "[0.0, 0.0]"
    assert re.fullmatch(reason, broken)


@pytest.mark.parametrize(("environment", "reason"), [
    ({"OLD": "1"}, "llvmpipe.*: Vulkan: it has version 1.0.68, 1.1 is needed; a newer driver may have it"),
    ({"USELESS": "1"}, "llvmpipe.*: Vulkan: none of its queues runs kernels"),
    ({"FAILING_CALL": "vkEnumeratePhysicalDevices", "FAILING_CODE": "-3"},
     r"Vulkan: vkEnumeratePhysicalDevices failed: VK_ERROR_INITIALIZATION_FAILED \(-3\); no installed driver works "
     r"here, vulkaninfo \(apt install vulkan-tools\) may say why")])
def test_why_there_is_no_device(between, environment, reason):
    result = subprocess.run([sys.executable, "-m", "runtime_py", "devices"], cwd=ROOT, capture_output=True, text=True,
                            env=os.environ | only(driver("lvp")) | {"LD_PRELOAD": str(between)} | environment)
    assert result.returncode == 0, result.stderr
    assert re.search(f"^vulkan +unavailable: {reason}$", result.stdout, re.M), result.stdout
    assert "vulkan:0" not in result.stdout
