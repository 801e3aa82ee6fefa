"""Buffers of the Vulkan runtime: freed when nobody uses them, kept for the next, within limits; nothing leaks."""

import gc

import pytest
from process_memory import ROUNDS, growth
from vulkan_kernels import address, counter, load_add

from runtime_py.devices import device_facts
from runtime_py.tvm_runtime import load_runtime


def test_modules_may_be_freed_while_their_kernels_wait(vulkan):
    total = vulkan.zeros((1 << 16,), "float32")
    for _ in range(20):
        load_add()(address(total), 1.0, 1 << 16, 1 << 10, 64)
        gc.collect()
    assert (vulkan.host(total) == 20).all()


LAUNCHES, LOADS = 10_000, 100
PER_LAUNCH, PER_LOAD = 16, 1 << 10  # bytes: what no leak of a call can hide under


def test_nothing_leaks_over_launches(vulkan):
    add, inputs = load_add(), vulkan.inputs(((64,),), "float32")

    def launch(times=LAUNCHES // ROUNDS):
        for _ in range(times):
            inputs.send()
            add(address(inputs.tensors[0]), 1.0, 64, 1, 64)
            passing = vulkan.zeros((64,), "float32")
            add(address(passing), 1.0, 64, 1, 64)
            del passing
        vulkan.host(inputs.tensors[0])

    launch(1000)
    before = counter("memory_in_use", 0), counter("objects")
    grown = growth(launch)
    assert (counter("memory_in_use", 0), counter("objects")) == before
    assert grown.allocated < PER_LAUNCH * LAUNCHES // ROUNDS


def test_nothing_leaks_over_loads(vulkan):
    tensor = vulkan.zeros((64,), "float32")

    def load(times=LOADS // ROUNDS):
        for _ in range(times):
            load_add()(address(tensor), 1.0, 64, 1, 64)
        vulkan.wait()

    load(20)
    before = counter("objects"), counter("memory_in_use", 0)
    grown = growth(load)
    assert (counter("objects"), counter("memory_in_use", 0)) == before
    assert grown.allocated < PER_LOAD * LOADS // ROUNDS
    assert (vulkan.host(tensor) == 20 + LOADS).all()


def test_freed_buffers_are_kept_for_the_next_of_their_size_within_bounds(vulkan):
    sizes = [(4 << 20) + extra for extra in range(24)]  # 16 MiB each
    for size in sizes:
        vulkan.zeros((size,), "float32")
    objects = counter("objects")
    vulkan.zeros((sizes[-1],), "float32")  # was kept
    assert counter("objects") == objects
    for size in sizes:
        vulkan.zeros((size + 100,), "float32")
    assert counter("objects") == objects  # each took the place of another


def allocate(bytes):
    ffi = load_runtime()
    return ffi.get_global_func("runtime.TVMTensorAllocWithScope")(
        ffi.Shape((bytes,)), ffi.dtype("uint8"), ffi.device("vulkan", 0), None)


def test_more_than_all_memory_is_refused_with_what_is_in_use(vulkan):
    limit, total = device_facts("vulkan:0")["max_allocation_bytes"], device_facts("vulkan:0")["memory_bytes"]
    if total > 64 * limit:
        pytest.skip("this machine lacks a device with little memory")
    with pytest.raises(RuntimeError, match=rf"does not fit into the memory of .*\(\d+ of {total} bytes in use\)"):
        held = [allocate(limit) for _ in range(total // limit + 1)]
        del held
    gc.collect()
    assert not vulkan.host(vulkan.zeros((1,), "float32")).any()  # it goes on
