"""The Vulkan runtime on the first device: launches, copies, their order, batches."""


import numpy as np
import pytest
from vulkan_kernels import (
    ADD,
    ADD_ARGUMENTS,
    MANY,
    address,
    counter,
    load_add,
    load_half,
    load_kernel,
    load_sum,
    load_weighted,
)

from runtime_py.tvm_runtime import load_runtime


def copy(source, target):
    load_runtime().get_global_func("runtime.TVMTensorCopyFromTo")(source, target)


def test_a_kernel_runs_and_its_launches_are_counted(vulkan):
    x, y, before = np.arange(1000, dtype="f4"), np.full(1000, 0.25, "f4"), counter("launches")
    tensors = [vulkan.tensor(x), vulkan.tensor(y), vulkan.zeros((1000,), "float32")]
    load_sum()(*map(address, tensors), 1000, 16, 64)
    np.testing.assert_array_equal(vulkan.host(tensors[2]), x + y)
    assert counter("launches") == before + 1


def test_numbers_beyond_push_constants_are_in_a_uniform_buffer(vulkan):
    weighted, rng = load_weighted(), np.random.default_rng(0)
    tensors, expected = [vulkan.zeros((3,), "int32") for _ in range(200)], []
    for tensor in tensors:  # each launch with numbers of its own
        numbers = rng.integers(-1000, 1000, MANY).tolist()
        weighted(address(tensor), *numbers, 3, 1)
        expected.append(sum((j + 1) * value for j, value in enumerate(numbers)))
    assert [vulkan.host(tensor).tolist() for tensor in tensors] == [[value] * 3 for value in expected]


def test_narrow_types_and_shared_memory(vulkan):
    x, y = np.linspace(-2, 2, 32).astype("f2"), np.arange(32, dtype="i1") - 16
    tensors = [vulkan.tensor(x), vulkan.tensor(y)]
    load_half()(*map(address, tensors), 1, 32)
    np.testing.assert_array_equal(vulkan.host(tensors[0]), x[::-1] * y)


def test_launches_that_depend_on_each_other_run_one_after_the_other(vulkan):
    """A chain through three buffers, longer than a batch: a launch too early leaves a wrong sum."""
    add_up, n = load_sum(), 1 << 16
    one = vulkan.tensor(np.ones(n, "f4"))
    chain = [vulkan.zeros((n,), "float32") for _ in range(3)]
    for turn in range(1000):
        add_up(address(chain[turn % 3]), address(one), address(chain[(turn + 1) % 3]), n, n // 64, 64)
    assert (vulkan.host(chain[1000 % 3]) == 1000).all()


def test_barriers_are_only_between_launches_that_depend_on_each_other(vulkan):
    add_up = load_sum()
    x, y, *targets = [vulkan.zeros((64,), "float32") for _ in range(12)]
    vulkan.wait()
    before = counter("barriers")
    for target in targets:  # readers of the same buffers
        add_up(address(x), address(y), address(target), 64, 1, 64)
    assert counter("barriers") <= before + 1  # at most behind what wrote x and y
    before = counter("barriers")
    add_up(address(targets[0]), address(y), address(targets[1]), 64, 1, 64)  # reads and overwrites what was written
    add_up(address(x), address(y), address(targets[0]), 64, 1, 64)  # overwrites what was read
    assert counter("barriers") == before + 2


def test_launches_are_batched_until_somebody_waits(vulkan):
    add, tensor = load_add(), vulkan.zeros((64,), "float32")
    vulkan.wait()
    before = counter("submissions")
    for _ in range(50):
        add(address(tensor), 1.0, 64, 1, 64)
    assert counter("submissions") == before
    vulkan.wait()
    assert counter("submissions") == before + 1
    vulkan.wait()
    assert counter("submissions") == before + 1  # there is nothing new
    for _ in range(1000):
        add(address(tensor), 1.0, 64, 1, 64)
    assert (vulkan.host(tensor) == 1050).all()
    assert before + 5 < counter("submissions") < before + 20  # a batch holds some hundred
    other, before = vulkan.zeros((64,), "float32"), counter("submissions")
    for _ in range(1000):
        copy(tensor, other)
    assert before + 5 < counter("submissions") < before + 20


def test_a_grid_whose_size_wraps_is_not_taken_for_an_empty_one(vulkan):
    add = load_kernel("add", ADD, ADD_ARGUMENTS, tags=("blockIdx.x", "blockIdx.y", "threadIdx.x"))
    with pytest.raises(RuntimeError, match="launching kernel add in 4294967296 x 4294967296 x 1 work-groups, .* runs"):
        add(address(vulkan.zeros((1,), "float32")), 1.0, 1, 1 << 32, 1 << 32, 64)
