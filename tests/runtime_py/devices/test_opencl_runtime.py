"""The OpenCL runtime on this machine's devices: launches, order, limits, errors by name, no leaks."""

import ctypes
import gc

import numpy as np
import pytest
from opencl_kernels import (
    ADD,
    FLOAT32,
    INT32,
    POINTER,
    address,
    counter,
    load_add,
    load_kernel,
    module_bytes,
)
from opencl_scale import compile_scale
from process_memory import ROUNDS, growth

from blockffn_mlc.errors import UserError
from runtime_py.devices import device_facts
from runtime_py.tvm_runtime import load_runtime

LEAK = 256 << 10  # bytes: more than 10,000 launches, or 100 loads, may leave behind
on_both_devices = pytest.mark.parametrize("device", [False, True], ids=["float32", "float16"], indirect=True)


def test_a_compiled_library_runs_and_its_launches_are_counted(device, tmp_path):
    main = load_runtime().load_module(str(compile_scale(tmp_path / "scale.so")))["main"]
    values = np.random.default_rng(0).normal(size=1000).astype("f4")
    x, y, before = device.tensor(values), device.zeros((1000,), "float32"), counter("launches")
    main(x, 2.5, y)
    np.testing.assert_array_equal(device.host(y), values * np.float32(2.5))
    assert counter("launches") == before + 1


def launches(device, besides=lambda: None):
    """A function that launches 10,000 kernels, with all that goes with them, and calls ``besides`` for each."""
    add, inputs = load_add(device), device.inputs(((64,),), "float32")

    def run():
        for turn in range(10_000):
            if turn % 10 == 0:
                inputs.send()
                device.zeros((1000,), "float32")
            if turn % 100 == 0:
                device.wait()  # or the driver's own queue would grow now and then
            add(address(inputs.tensors[0]), 1.0, 64, 1, 64)
            besides()
        device.host(inputs.tensors[0])
    return run


def held(device):
    """Objects of the driver that exist, and bytes in buffers."""
    gc.collect()
    return counter("objects"), counter("memory_in_use", device.index), counter("memory_kept", device.index)


@on_both_devices
def test_nothing_leaks_over_launches(device):
    run = launches(device)
    run()
    before, launched = held(device), counter("launches")
    grown = growth(run)
    assert counter("launches") == launched + ROUNDS * 10_000 and held(device) == before
    assert grown.allocated < LEAK and grown.resident < LEAK


def test_a_leak_of_64_bytes_in_a_launch_is_noticed(device):
    malloc = ctypes.CDLL(None).malloc
    run = launches(device, besides=lambda: malloc(ctypes.c_size_t(64)))
    run()
    assert growth(run).allocated > 2 * LEAK


@on_both_devices
def test_nothing_leaks_over_loads(device):
    tensor = device.zeros((64,), "float32")

    def run():
        for _ in range(100):
            load_add(device)(address(tensor), 1.0, 64, 1, 64)
        device.host(tensor)

    run()
    before, grown = held(device), growth(run)
    assert held(device) == before
    assert grown.allocated < LEAK and grown.resident < 8 * LEAK  # drivers' compilers keep pages of their own
    assert (device.host(tensor) == (1 + ROUNDS) * 100).all()


def test_freed_buffers_are_kept_within_bounds(device):
    for extra in range(40):  # 640 MiB, each buffer of another size
        device.zeros(((4 << 20) + extra,), "float32")
    assert 200 << 20 < counter("memory_kept", device.index) <= 256 << 20
    addresses = {device.zeros((12345,), "float32").data_ptr() for _ in range(5)}
    assert len(addresses) == 1


def test_what_the_device_refuses_is_a_sentence_for_users(device, monkeypatch):
    def refuse(*_):
        raise RuntimeError("OpenCL: clCreateBuffer of 8 bytes failed: CL_OUT_OF_RESOURCES (-5)")
    monkeypatch.setattr(device, "_allocate", refuse)
    with pytest.raises(UserError, match=f"^device {device.name}: OpenCL: clCreateBuffer of 8 bytes failed: CL_OUT"):
        device.zeros((2,), "float32")


@on_both_devices
def test_a_refused_launch_names_kernel_error_and_limits(device):
    limit = device_facts(device.name)["max_work_group_size"]
    with pytest.raises(RuntimeError, match=r"launching kernel add failed: CL_INVALID_WORK_(GROUP|ITEM)_SIZE \(-5\d\); "
                                           rf"1 x 1 x 1 work-groups of {2 * limit} x 1 x 1 work-items .* up to \d+ of"):
        load_add(device)(address(device.zeros((1,), "float32")), 1.0, 1, 1, 2 * limit)


@on_both_devices
def test_a_missing_buffer_names_argument_and_kernel(device):
    kernel = load_kernel(device, "add", ADD, (INT32, FLOAT32, INT32))  # 4 bytes where a pointer belongs
    with pytest.raises(RuntimeError, match=r"setting argument 0 of kernel add failed: CL_INVALID_ARG_SIZE \(-51\)"):
        kernel(0, 1.0, 1, 1, 1)


@on_both_devices
def test_a_kernel_that_does_not_compile_shows_the_log(device):
    kernel = load_kernel(device, "add", ADD.replace("x[i] +=", "nowhere[i] +="), (POINTER, FLOAT32, INT32))
    with pytest.raises(RuntimeError, match=r"(?s)compiling kernel add for .* failed: CL_BUILD_PROGRAM_FAILURE \(-11\)\n"
                                           ".*nowhere"):
        kernel(address(device.zeros((1,), "float32")), 1.0, 1, 1, 1)


def test_a_kernel_under_another_name_is_refused(device):
    kernel = load_kernel(device, "subtract", ADD, (POINTER, FLOAT32, INT32))
    with pytest.raises(RuntimeError, match=r"creating kernel subtract failed: CL_INVALID_KERNEL_NAME \(-46\)"):
        kernel(address(device.zeros((1,), "float32")), 1.0, 1, 1, 1)


def test_damaged_modules_are_refused(device):
    load = load_runtime().get_global_func("ffi.Module.load_from_bytes.opencl")
    whole = module_bytes("add", ADD, (POINTER, FLOAT32, INT32))
    assert load(whole).inspect_source("").endswith(ADD)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="end early"):
            load(whole[:size])
    with pytest.raises(ValueError, match="lacks the source of add"):
        load(whole.replace(b"// Function: add", b"// Function: sub"))
    with pytest.raises(ValueError, match="unknown launch tag vthread"):
        load(module_bytes("add", ADD, (POINTER, FLOAT32, INT32), tags=("vthread",)))
