"""The Vulkan runtime in processes of their own: validation layers, staging, and what may be missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT, HERE = Path(__file__).resolve().parents[3], Path(__file__).resolve().parent
TESTS = ("device_runtimes", "vulkan_runtime", "vulkan_memory", "vulkan_refusals")
RUNTIME_TESTS = """
import sys
import pytest
from runtime_py.devices import device_facts
from runtime_py.tvm_runtime import load_runtime

assert pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *sys.argv[1:]]) == 0
messages = load_runtime().get_global_func("blockffn.vulkan.validation_messages")()
print("staging", device_facts("vulkan:0")["staging"], "messages", len(messages))
"""
# A module whose shader reads a number that is not among the kernel's arguments.
LYING_MODULE = """
import sys
sys.path.insert(0, sys.argv[1])
from vulkan_kernels import POINTER, SUM, address, counter, load_kernel
from runtime_py.devices import find_device

vulkan = find_device("vulkan")
kernel = load_kernel("sum", SUM, (POINTER, POINTER, POINTER))
tensors = [vulkan.zeros((64,), "float32") for _ in range(3)]
assert not counter("validation_messages")
kernel(*map(address, tensors), 1, 64)
print("messages", len(counter("validation_messages")))
"""


def run(code, *arguments, **environment):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, env=os.environ | environment)


@pytest.fixture(scope="module")
def layers(vulkan):
    """Validation layers; skips where there are none."""
    listed = run("from runtime_py.cli import main\nmain(['devices'])", BLOCKFFN_VULKAN_VALIDATION="1").stdout
    if "VK_LAYER_KHRONOS_validation is not installed" in listed:
        pytest.skip("this machine lacks Vulkan's validation layers; install them with: apt install "
                    "vulkan-validationlayers")


@pytest.mark.parametrize("staging", [False, True])
def test_validation_layers_have_nothing_to_say(layers, staging):
    """Also of hazards between commands: with ``staging``, as discrete GPUs, every copy is one."""
    result = run(RUNTIME_TESTS, "-k", "vulkan", *(HERE / f"test_{part}.py" for part in TESTS),
                 BLOCKFFN_VULKAN_VALIDATION="1", BLOCKFFN_VULKAN_STAGING=str(int(staging)))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"staging {staging} messages 0", result.stderr


def test_validation_layers_are_heard(layers):
    result = run(LYING_MODULE, HERE, BLOCKFFN_VULKAN_VALIDATION="1")
    count = int(re.search(r"^messages (\d+)$", result.stdout, re.M)[1])
    assert count >= 1 and result.stderr.count("Vulkan validation: ") >= count, result.stderr
    assert "VUID-" in result.stderr


def test_without_validation_layers_asking_for_them_says_what_to_install(vulkan, tmp_path):
    code = "from runtime_py.cli import main\nmain(['devices'])"
    result = run(code, BLOCKFFN_VULKAN_VALIDATION="1", VK_LAYER_PATH=str(tmp_path))
    assert re.search("^vulkan +unavailable: .*VK_LAYER_KHRONOS_validation is not installed; .* apt install "
                     "vulkan-validationlayers, or unset", result.stdout, re.M), result.stdout + result.stderr
    code = "from runtime_py.devices import find_device\nfind_device('vulkan:0')"
    result = run(code, BLOCKFFN_VULKAN_VALIDATION="1", VK_LAYER_PATH=str(tmp_path))
    assert "UserError: device vulkan:0: Vulkan: BLOCKFFN_VULKAN_VALIDATION is set and" in result.stderr


def test_without_a_driver_the_listing_says_what_to_install(vulkan, tmp_path):
    code = "from runtime_py.cli import main\nassert main(['devices']) == 0"
    result = run(code, VK_ICD_FILENAMES=str(tmp_path / "none.json"), VK_DRIVER_FILES=str(tmp_path / "none.json"))
    assert re.search(r"^vulkan +unavailable: no Vulkan driver has a device here; install the graphics card's, or for "
                     r"the processor lavapipe \(apt install mesa-vulkan-drivers\)$", result.stdout, re.M), result.stderr
