"""What the device runtimes have in common: copies, order, threads, the buffers in use, refusals."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from counters import counter
from device_kernels import copy, empty, first, load_add
from machine import opencl_device, vulkan_device
from opencl_kernels import address

from runtime_py.devices import device_facts
from runtime_py.tvm_runtime import load_runtime


@pytest.fixture(scope="module", params=[opencl_device, partial(opencl_device, half=True), vulkan_device],
                ids=["opencl", "opencl-float16", "vulkan"])
def device(request):
    return request.param()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint32", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (3 << 20,)])  # the last one is copied in pieces, or not staged
def test_arrays_go_there_and_back(device, dtype, shape):
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    tensor = device.tensor(array)
    assert tuple(tensor.shape) == shape and str(tensor.dtype) == dtype
    np.testing.assert_array_equal(device.host(tensor), array)
    assert not device.host(device.zeros(shape, dtype)).any()
    np.testing.assert_array_equal(device.host(device.tensor(array[..., ::-1])), array[..., ::-1])


def test_work_is_done_in_order_whatever_happens_to_the_arrays_meanwhile(device):
    add, inputs = load_add(device), device.inputs(((1000,),), "float32")
    results = []
    for turn in range(200):
        inputs.arrays[0][:] = turn
        inputs.send()
        for value in (0.5, 0.25):
            add(address(inputs.tensors[0]), value, 1000, 16, 64)
        results.append(empty(device, 1000))
        copy(inputs.tensors[0], results[-1])
        inputs.arrays[0][:] = np.nan
    for turn, result in enumerate(results):
        np.testing.assert_array_equal(device.host(result), np.full(1000, turn + 0.75, "f4"))


def test_threads_share_a_kernel(device):
    add, tensors = load_add(device), [device.zeros((256,), "float32") for _ in range(4)]

    def launch(index):
        for _ in range(500):
            add(address(tensors[index]), float(index + 1), 256, 4, 64)

    with ThreadPoolExecutor(len(tensors)) as pool:
        list(pool.map(launch, range(len(tensors))))
    for index, tensor in enumerate(tensors):
        assert (device.host(tensor) == 500 * (index + 1)).all()


@pytest.mark.parametrize("step", [0, 1], ids=["kept", "destroyed"])
def test_buffers_may_be_freed_while_kernels_that_use_them_wait(device, step):
    """A freed buffer is kept for the next of its size. Of other sizes 256 MiB are, so most of these are destroyed."""
    add, zeros, n = load_add(device), device.zeros((5000,), "float32"), 5000
    copies = [empty(device, n) for _ in range(40)]  # fewer commands than a batch has
    for turn, target in enumerate(copies):
        passing = empty(device, (4 << 20) + step * turn)
        copy(zeros, first(passing, n))
        add(address(passing), float(turn), n, -(-n // 64), 64)
        copy(first(passing, n), target)
        del passing
    for turn, target in enumerate(copies):
        assert (device.host(target) == turn).all()


def test_an_empty_launch_does_nothing(device):
    before = counter(device.kind, "launches")
    load_add(device)(address(device.zeros((1,), "float32")), 1.0, 0, 0, 64)
    assert counter(device.kind, "launches") == before


def test_the_memory_in_use_is_known(device):
    before = counter(device.kind, "memory_in_use", device.index)
    tensor = device.zeros((1000,), "float32")
    assert counter(device.kind, "memory_in_use", device.index) == before + 4000
    del tensor
    assert counter(device.kind, "memory_in_use", device.index) == before


def test_a_buffer_beyond_the_limit_is_refused_with_size_and_limit(device):
    limit = device_facts(device.name)["max_allocation_bytes"]
    allocate = load_runtime().get_global_func("runtime.TVMTensorAllocWithScope")
    ffi = load_runtime()
    with pytest.raises(RuntimeError, match=f"{limit + 4} bytes is larger than .* allows .{limit} bytes"):
        allocate(ffi.Shape((limit // 4 + 1,)), ffi.dtype("float32"), ffi.device(device.kind, device.index), None)


def test_a_wrong_number_of_values_is_refused(device):
    with pytest.raises(TypeError, match="kernel add takes 5 values, found 2"):
        load_add(device)(address(device.zeros((1,), "float32")), 1.0)


@pytest.mark.parametrize("n", [1 << 31, -(1 << 31) - 1])
def test_a_number_that_does_not_fit_its_type_is_refused(n, device):
    tensor = device.zeros((1,), "float32")
    with pytest.raises(ValueError, match=f"argument 2 of kernel add is {n}, which does not fit into its 32 bits"):
        load_add(device)(address(tensor), 1.0, n, 1, 64)
