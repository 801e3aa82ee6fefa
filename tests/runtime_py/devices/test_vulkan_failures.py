"""A Vulkan driver that fails: what is said, and that nothing is left behind. A library between the runtime and the
driver makes a call fail, from some call on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT, HERE = Path(__file__).resolve().parents[3], Path(__file__).resolve().parent
BETWEEN = r"""
#include <dlfcn.h>
#include <vulkan/vulkan.h>
#include <cstdlib>
#include <cstring>

static VkResult failure(const char* call) {
  const char* wanted = std::getenv("FAILING_CALL");
  if (wanted == nullptr || std::strcmp(wanted, call) != 0) return VK_SUCCESS;
  return static_cast<VkResult>(std::atoi(std::getenv("FAILING_CODE")));
}
#define BETWEEN(call, parameters, arguments)                                                   \
  extern "C" VkResult call parameters {                                                        \
    const VkResult result = failure(#call);                                                    \
    return result ? result : reinterpret_cast<decltype(&call)>(dlsym(RTLD_NEXT, #call)) arguments; \
  }
BETWEEN(vkQueueSubmit, (VkQueue queue, uint32_t count, const VkSubmitInfo* info, VkFence fence),
        (queue, count, info, fence))
BETWEEN(vkWaitForFences, (VkDevice device, uint32_t count, const VkFence* fences, VkBool32 all, uint64_t limit),
        (device, count, fences, all, limit))
BETWEEN(vkCreateFence, (VkDevice device, const VkFenceCreateInfo* info, const VkAllocationCallbacks* a, VkFence* made),
        (device, info, a, made))
BETWEEN(vkAllocateMemory,
        (VkDevice device, const VkMemoryAllocateInfo* info, const VkAllocationCallbacks* a, VkDeviceMemory* made),
        (device, info, a, made))
BETWEEN(vkMapMemory, (VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize size,
                      VkMemoryMapFlags flags, void** made), (device, memory, offset, size, flags, made))
BETWEEN(vkCreateComputePipelines,
        (VkDevice device, VkPipelineCache cache, uint32_t count, const VkComputePipelineCreateInfo* info,
         const VkAllocationCallbacks* a, VkPipeline* made), (device, cache, count, info, a, made))
"""
BEGIN = f"""
import os
import sys
sys.path[:0] = [{str(HERE)!r}]
from vulkan_kernels import address, counter, load_add
from runtime_py.devices import find_device

def fail(call, code):
    os.environ["FAILING_CODE"], os.environ["FAILING_CALL"] = str(code), call

def ask(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("nothing")

vulkan = find_device("vulkan")
"""
LAUNCH = """
x = vulkan.zeros((8,), "float32")
kernels = {name: load_add(name) for name in ("first", "middle", "last")}
def launch(*names):
    for name in names:
        kernels[name](address(x), 1.0, 8, 1, 64)
launch(*kernels)
vulkan.wait()
"""


@pytest.fixture(scope="module")
def between(vulkan, tmp_path_factory):
    """The library."""
    folder = tmp_path_factory.mktemp("between")
    (folder / "between.cc").write_text(BETWEEN)
    subprocess.run([os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-o", folder / "between.so",
                    folder / "between.cc", "-Wl,--no-as-needed", "-lvulkan", "-ldl"], check=True)
    return folder / "between.so"


@pytest.fixture
def said(between):
    """said(code, **environment): what a program with that library prints, by lines."""
    def said(code, **environment):
        done = subprocess.run([sys.executable, "-c", BEGIN + code], cwd=ROOT, capture_output=True, text=True,
                              timeout=120, env=os.environ | {"LD_PRELOAD": str(between)} | environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()
    return said


@pytest.mark.parametrize(("call", "doing"), [("vkQueueSubmit", "submitting"), ("vkWaitForFences", "waiting for")])
def test_a_lost_device_names_the_kernels(said, call, doing):
    several, one = said(LAUNCH + f"""
launch("first", "middle", "last")
fail("{call}", -4)
ask(vulkan.wait)
fail("", 0)
vulkan.wait()
launch("middle")
fail("{call}", -4)
ask(vulkan.host, x)
fail("", 0)""")
    lost = "failed: VK_ERROR_DEVICE_LOST (-4)"
    assert several == (f"UserError device vulkan:0: Vulkan: {doing} 3 launches, from kernel first to last {lost}; "
                       "BLOCKFFN_SYNC=1 waits behind every launch and names the one that fails")
    assert one == f"UserError device vulkan:0: Vulkan: {doing} kernel middle {lost}"


def test_waiting_behind_every_launch_names_the_kernel(said):
    code = LAUNCH + """
before = counter("submissions")
launch("first", "middle")
print(counter("submissions") - before)
fail("vkWaitForFences", -4)
ask(launch, "last")"""
    assert said(code, BLOCKFFN_SYNC="1") == [
        "2", "RuntimeError Vulkan: waiting for kernel last failed: VK_ERROR_DEVICE_LOST (-4)"]
    assert said(code, BLOCKFFN_SYNC="0") == ["0", "nothing"]


def test_a_kernel_that_the_driver_does_not_compile_is_named(said):
    said = said("""
x, add = vulkan.zeros((8,), "float32"), load_add()
objects = counter("objects")
fail("vkCreateComputePipelines", -2)
ask(add, address(x), 1.0, 8, 1, 64)
print(counter("objects") - objects)
fail("", 0)
add(address(x), 1.0, 8, 1, 64)
print(vulkan.host(x)[:2].tolist())""")
    assert said[0].startswith("RuntimeError Vulkan: compiling kernel add for ")
    assert said[0].endswith(" failed: VK_ERROR_OUT_OF_DEVICE_MEMORY (-2)")
    assert said[1:] == ["0", "[1.0, 1.0]"]


@pytest.mark.parametrize(("call", "code", "name"), [
    ("vkAllocateMemory", -2, "VK_ERROR_OUT_OF_DEVICE_MEMORY"), ("vkMapMemory", -5, "VK_ERROR_MEMORY_MAP_FAILED")])
def test_a_buffer_that_cannot_be_made_leaves_nothing_behind(said, call, code, name):
    said = said(f"""
vulkan.zeros((8,), "float32")
objects, kept = counter("objects"), counter("memory_kept", 0)
fail("{call}", {code})
for _ in range(3):
    ask(vulkan.zeros, (999,), "float32")
print(counter("objects") < objects, counter("memory_in_use", 0), kept, counter("memory_kept", 0))
fail("", 0)
print(vulkan.host(vulkan.zeros((2,), "float32")).tolist())""")
    message = f"UserError device vulkan:0: Vulkan: making a buffer of 3996 bytes failed: {name} ({code})"
    assert said == [message] * 3 + ["True 0 32 0", "[0.0, 0.0]"]  # what was kept was given up to make room


def test_a_device_that_cannot_be_opened_leaves_nothing_behind(said):
    said = said("""
fail("vkCreateFence", -1)
for _ in range(3):
    ask(vulkan.zeros, (8,), "float32")
    print(counter("objects"))
fail("", 0)
print(vulkan.host(vulkan.zeros((2,), "float32")).tolist())""")
    message = "UserError device vulkan:0: Vulkan: vkCreateFence failed: VK_ERROR_OUT_OF_HOST_MEMORY (-1)"
    assert said == [message, "0"] * 3 + ["[0.0, 0.0]"]
