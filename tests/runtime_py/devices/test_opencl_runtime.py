"""The OpenCL runtime on this machine's devices: launches, order, limits, errors by name, no leaks."""

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor

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


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint32", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (1 << 20,)])  # the last one is not staged on its way
def test_arrays_go_there_and_back(device, dtype, shape):
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    tensor = device.tensor(array)
    assert tuple(tensor.shape) == shape and str(tensor.dtype) == dtype
    np.testing.assert_array_equal(device.host(tensor), array)
    assert not device.host(device.zeros(shape, dtype)).any()
    np.testing.assert_array_equal(device.host(device.tensor(array[..., ::-1])), array[..., ::-1])


@on_both_devices
def test_work_is_done_in_order_whatever_happens_to_the_arrays_meanwhile(device):
    add, inputs = load_add(device), device.inputs(((1000,),), "float32")
    results = []
    for turn in range(200):
        inputs.arrays[0][:] = turn
        inputs.send()
        for value in (0.5, 0.25):
            add(address(inputs.tensors[0]), value, 1000, 16, 64)
        copy = device.zeros((1000,), "float32")
        load_runtime().get_global_func("runtime.TVMTensorCopyFromTo")(inputs.tensors[0], copy)
        results.append(copy)
        inputs.arrays[0][:] = np.nan
    for turn, result in enumerate(results):
        np.testing.assert_array_equal(device.host(result), np.full(1000, turn + 0.75, "f4"))


@on_both_devices
def test_threads_share_a_kernel(device):
    add, tensors = load_add(device), [device.zeros((256,), "float32") for _ in range(4)]

    def launch(index):
        for _ in range(500):
            add(address(tensors[index]), float(index + 1), 256, 4, 64)

    with ThreadPoolExecutor(len(tensors)) as pool:
        list(pool.map(launch, range(len(tensors))))
    for index, tensor in enumerate(tensors):
        assert (device.host(tensor) == 500 * (index + 1)).all()


@on_both_devices
def test_buffers_may_be_freed_while_kernels_that_use_them_wait(device):
    add, total = load_add(device), device.zeros((1 << 16,), "float32")
    for _ in range(50):
        passing = device.zeros((1 << 16,), "float32")
        add(address(passing), 1.0, 1 << 16, 1 << 10, 64)
        add(address(total), 1.0, 1 << 16, 1 << 10, 64)
        del passing
    assert (device.host(total) == 50).all()


def test_an_empty_launch_does_nothing(device):
    before = counter("launches")
    load_add(device)(address(device.zeros((1,), "float32")), 1.0, 0, 0, 64)
    assert counter("launches") == before


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


@on_both_devices
def test_the_memory_in_use_is_known(device):
    before = counter("memory_in_use", device.index)
    tensor = device.zeros((1000,), "float32")
    assert counter("memory_in_use", device.index) == before + 4000
    del tensor
    assert counter("memory_in_use", device.index) == before


@on_both_devices
def test_a_buffer_beyond_the_limit_is_refused_with_size_and_limit(device):
    limit = device_facts(device.name)["max_allocation_bytes"]
    allocate = load_runtime().get_global_func("runtime.TVMTensorAllocWithScope")
    ffi = load_runtime()
    with pytest.raises(RuntimeError, match=f"{limit + 4} bytes is larger than .* allows .{limit} bytes"):
        allocate(ffi.Shape((limit // 4 + 1,)), ffi.dtype("float32"), ffi.device("opencl", device.index), None)


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


def test_a_wrong_number_of_values_is_refused(device):
    with pytest.raises(TypeError, match="kernel add takes 5 values, found 2"):
        load_add(device)(address(device.zeros((1,), "float32")), 1.0)


@pytest.mark.parametrize("n", [1 << 31, -(1 << 31) - 1])
def test_a_number_that_does_not_fit_its_type_is_refused(n, device):
    tensor = device.zeros((1,), "float32")
    with pytest.raises(ValueError, match=f"argument 2 of kernel add is {n}, which does not fit into its 32 bits"):
        load_add(device)(address(tensor), 1.0, n, 1, 1)


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
