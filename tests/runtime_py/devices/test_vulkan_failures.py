"""A Vulkan driver that fails: what is said, and that nothing is left behind. A library between the runtime and the
driver (vulkan_between.cc) makes a call fail, from some call on."""

import pytest

LAUNCH = """
x = vulkan.zeros((8,), "float32")
kernels = {name: load_add(name) for name in ("first", "middle", "last")}
def launch(*names):
    for name in names:
        kernels[name](address(x), 1.0, 8, 1, 64)
launch(*kernels)
vulkan.wait()
"""


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


def test_a_refused_batch_leaves_those_before_to_be_waited_for(said):
    """Its barriers went with it, also those between what is before and behind it."""
    first, lost, before, behind, barriers = said(LAUNCH + """
y, BATCH = vulkan.zeros((8,), "float32"), 128
vulkan.wait()
def launch_on_y():
    kernels["last"](address(y), 1.0, 8, 1, 64)
os.environ["HOLDING"] = "1"
launch(*["first"] * BATCH)
launch_on_y()
launch_on_y()  # behind a barrier
fail("vkQueueSubmit", -2)
ask(vulkan.wait)
fail("", 0)
ask(vulkan.wait)
print(vulkan.host(x)[:2].tolist())
barriers = counter("barriers")
launch(*["first"] * BATCH)
launch_on_y()
launch_on_y()
fail("vkQueueSubmit", -2)
try:
    vulkan.wait()
except Exception:
    pass
fail("", 0)
before = counter("barriers")
launch("last")
print(counter("barriers") - before)
print(vulkan.host(x)[:2].tolist(), vulkan.host(y)[:2].tolist())""")
    assert first == ("UserError device vulkan:0: Vulkan: submitting 2 launches, from kernel last to last failed: "
                     "VK_ERROR_OUT_OF_DEVICE_MEMORY (-2); BLOCKFFN_SYNC=1 waits behind every launch and names the one "
                     "that fails")
    assert lost == "nothing" and before == "[131.0, 131.0]"
    assert behind == "1" and barriers == "[260.0, 260.0] [0.0, 0.0]"


@pytest.mark.parametrize(("call", "problem"), [
    (None, "nothing"), ("vkQueueSubmit", "Vulkan: submitting kernel last failed: VK_ERROR_OUT_OF_HOST_MEMORY (-1)"),
    ("vkWaitForFences", "Vulkan: waiting for kernel last failed: VK_ERROR_OUT_OF_HOST_MEMORY (-1)")])
@pytest.mark.parametrize("forget", [
    "del y\nfor floats in range(100, 400):  # more than are kept\n    empty(vulkan, floats)",
    'del kernels["last"]'], ids=["buffer", "kernel"])
def test_nothing_is_destroyed_that_a_batch_may_still_use(said, forget, call, problem):
    """Not if the batch that is recorded is refused, nor if nobody can tell when one is done; the next who waits is told
    what happened meanwhile."""
    lines = said(LAUNCH + f"""
y, BATCH = vulkan.zeros((8,), "float32"), 128
os.environ["HOLDING"] = "1"
for _ in range(BATCH + 1):  # a batch is submitted, another one is recorded
    kernels["last"](address(y), 1.0, 8, 1, 64)
fail("{call}", -1)
{forget}
fail("", 0)
ask(vulkan.wait)
ask(vulkan.wait)
launch("first")
print(vulkan.host(x)[:2].tolist())""")
    first, *others = lines
    assert first.removeprefix("UserError device vulkan:0: ") == problem
    assert others == ["nothing", "[4.0, 4.0]"]


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


OWN, SEEN, SEEN_IN_CACHES, OTHER = 1, 6, 14, 64  # flags of memory types


@pytest.mark.parametrize(("types", "allowed", "kernels", "copies"), [
    ([OWN, OWN | SEEN, OWN | SEEN_IN_CACHES], 0b111, 2, None),  # read and written in place
    ([OWN | SEEN, OWN, SEEN, SEEN_IN_CACHES], 0b1111, 0, 3),
    ([OWN | SEEN_IN_CACHES, OWN, SEEN, SEEN_IN_CACHES], 0b1110, 1, 3),
    ([OWN | SEEN_IN_CACHES, OWN, SEEN, SEEN_IN_CACHES], 0b0110, 1, 2),
    ([OTHER | OWN | SEEN_IN_CACHES, OWN | SEEN, SEEN_IN_CACHES], 0b111, 1, 2)])  # the first one needs an extension
def test_memory_is_of_a_type_that_the_buffer_may_have(said, types, allowed, kernels, copies):
    lines = said("""
import numpy as np
x = vulkan.tensor(np.arange(8, dtype="f4"))
load_add()(address(x), 1.0, 8, 1, 64)
print(vulkan.host(x).tolist())""", MEMORY_TYPES=" ".join(map(str, types)), MEMORY_ALLOWED=str(allowed))
    *taken, values = lines
    assert list(dict.fromkeys(taken)) == [f"memory of type {type_}" for type_ in (kernels, copies) if type_ is not None]
    assert values == str([float(value + 1) for value in range(8)])


def test_a_device_without_fitting_memory_says_so(said):
    (message,) = said('ask(vulkan.zeros, (8,), "float32")', MEMORY_TYPES=str(OTHER), MEMORY_ALLOWED="1")
    assert "has no memory for kernels among types 1 (a bit each)" in message
