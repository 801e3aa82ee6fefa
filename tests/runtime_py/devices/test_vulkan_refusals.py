"""What the Vulkan runtime refuses by name: launches, kernels beyond the device's limits, damaged modules."""

from ctypes import c_void_p

import numpy as np
import pytest
from vulkan_kernels import (
    ADD,
    ADD_ARGUMENTS,
    FLOAT32,
    HALF,
    INT32,
    POINTER,
    SUM,
    address,
    load_add,
    load_bytes,
    load_kernel,
    load_module,
    module_bytes,
    words,
)

from runtime_py.devices import device_facts
from targets.vulkan.spirv import CAPABILITIES


def test_a_grid_beyond_the_limit_is_refused_with_kernel_and_limit(vulkan):
    tensor = vulkan.zeros((1,), "float32")
    with pytest.raises(RuntimeError, match=r"launching kernel add in 4294967295 x 1 x 1 work-groups, .* runs up to \d+ "
                                           "along axis 0"):
        load_add()(address(tensor), 1.0, 1, (1 << 32) - 1, 64)
    with pytest.raises(ValueError, match="kernel add in work-groups of 65 x 1 x 1 work-items, its shader was compiled "
                                         "for others"):
        load_add()(address(tensor), 1.0, 1, 1, 65)


@pytest.mark.parametrize("value", [0, 8])
def test_what_is_no_buffer_is_refused_with_argument_and_kernel(vulkan, value):
    with pytest.raises(ValueError, match="argument 0 of kernel add is no buffer of"):
        load_add()(c_void_p(value), 1.0, 1, 1, 64)


@pytest.mark.parametrize(("name", "capability", "words_"), [
    ("sparse", "SPIR-V capability 41, which this runtime does not know", (2 << 16 | 17, 41)),  # SparseResidency
    ("pushed", "SPIR-V capability 4435, which this runtime does not know", (2 << 16 | 17, 4435)),  # not ours
    ("linked", "SPIR-V capability 5, which", (2 << 16 | 17, 5))])
def test_a_kernel_that_needs_what_is_missing_is_refused_by_name(vulkan, name, capability, words_):
    code = words(ADD, name)
    module = load_bytes(module_bytes(name, (*code[:5], *words_, *code[5:]), ADD_ARGUMENTS))
    with pytest.raises(RuntimeError, match=f"kernel {name} needs {capability}"):
        module["check_device"](0)
    with pytest.raises(RuntimeError, match=f"kernel {name} needs {capability}"):
        module[name](address(vulkan.zeros((1,), "float32")), 1.0, 1, 1, 64)


def test_what_the_code_generator_asks_for_is_known(vulkan):
    code = words(ADD, "add")
    for number in CAPABILITIES:
        module = load_bytes(module_bytes("add", (*code[:5], 2 << 16 | 17, number, *code[5:]), ADD_ARGUMENTS))
        try:
            module["check_device"](0)
        except RuntimeError as error:
            assert str(error).endswith(f"needs {CAPABILITIES[number]}, which {vulkan.product} lacks")


def test_a_kernel_that_shares_too_much_memory_is_refused_by_name(vulkan):
    source = ADD.replace("void main() {", """shared float big[100000];
        void main() { big[gl_LocalInvocationIndex] = x[0]; barrier(); x[1] = big[99 - gl_LocalInvocationIndex];""")
    with pytest.raises(RuntimeError, match=r"kernel add needs 400000 bytes of memory that a group shares, .* has \d+"):
        load_module("add", source, ADD_ARGUMENTS)["check_device"](0)


def test_a_work_group_beyond_the_limit_is_refused_by_name(vulkan):
    code = list(words(ADD, "add"))
    at = next(at for at in range(len(code)) if code[at:at + 1] == [6 << 16 | 16] and code[at + 2] == 17)  # LocalSize
    for size in ([1 << 20, 1, 1], [1, 1, 1 << 20]):
        code[at + 3:at + 6] = size
        with pytest.raises(RuntimeError, match=r"kernel add needs 1048576 work-items in a group, .* has \d+"):
            load_bytes(module_bytes("add", code, ADD_ARGUMENTS))["check_device"](0)


def test_push_constants_beyond_the_limit_are_refused_by_name(vulkan):
    count = device_facts("vulkan:0")["push_constant_bytes"] // 8 + 1
    module = load_module("add", ADD, (POINTER, *[INT32] * count))
    with pytest.raises(RuntimeError, match=rf"kernel add needs {8 * count} bytes of push constants, .* has"):
        module["check_device"](0)


def test_more_buffers_than_the_device_allows_are_refused_by_name(vulkan):
    most = device_facts("vulkan:0")["max_buffers"]
    load_module("add", ADD, (*[POINTER] * most, FLOAT32, INT32))["check_device"](0)
    with pytest.raises(RuntimeError, match=rf"kernel add needs {most + 1} storage buffers, .* has {most}$"):
        load_module("add", ADD, (*[POINTER] * (most + 1), FLOAT32, INT32))["check_device"](0)


def test_a_module_that_suits_the_device_passes_its_check(vulkan):
    load_module("half", HALF, (POINTER, POINTER))["check_device"](0)


def test_damaged_modules_are_refused(vulkan):
    code = words(ADD, "add")
    whole = module_bytes("add", code, ADD_ARGUMENTS)
    assert load_bytes(whole)["add"] is not None
    for size in range(0, len(whole), 3):
        with pytest.raises(ValueError, match="end early"):
            load_bytes(whole[:size])
    with pytest.raises(ValueError, match="lacks the shader of add"):
        load_bytes(module_bytes("add", code, ADD_ARGUMENTS, shader="sub"))
    for damaged, why in ((code[1:], "it is no SPIR-V"), (code[:4], "it is no SPIR-V"),
                         (code[:5], "it has no such entry point"),
                         ((*code[:5], 3 << 16 | 17, 1), "it ends within an instruction"),
                         ((*code[:5], 0), "it ends within an instruction"),
                         (words(ADD, "other"), "it has no such entry point")):
        with pytest.raises(ValueError, match=f"shader of kernel add is damaged: {why}"):
            load_bytes(module_bytes("add", damaged, ADD_ARGUMENTS))
    for tag, complaint in (("vthread", "unknown launch tag vthread"),
                           ("tirx.use_dyn_shared_memory", "kernel add asks for memory at its launch")):
        with pytest.raises(ValueError, match=complaint):
            load_bytes(module_bytes("add", code, ADD_ARGUMENTS, tags=(tag,)))
    with pytest.raises(ValueError, match="kernel sum takes 2 buffers, its shader uses binding 2"):
        load_bytes(module_bytes("sum", words(SUM, "sum"), (POINTER, POINTER, INT32)))
    with pytest.raises(ValueError, match="kernel add takes a buffer behind a number"):
        load_bytes(module_bytes("add", code, (FLOAT32, POINTER, INT32)))


def test_a_kernel_whose_shader_lies_about_an_instruction_does_not_crash(vulkan):
    code, rng = words(ADD, "add"), np.random.default_rng(0)
    for _ in range(300):
        broken = list(code)
        broken[rng.integers(5, len(code))] = int(rng.integers(0, 1 << 32))
        try:
            load_bytes(module_bytes("add", broken, ADD_ARGUMENTS))
        except ValueError as error:
            assert "shader of kernel add is damaged" in str(error)


def test_unknown_kernels_are_not_found(vulkan):
    module = load_module("add", ADD, ADD_ARGUMENTS)
    with pytest.raises(AttributeError):
        module["subtract"]
    assert load_kernel("add", ADD, ADD_ARGUMENTS) is not None
