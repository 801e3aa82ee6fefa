"""The Vulkan runtime on the first device: launches, order, batches, limits, errors by name, no leaks."""

import gc
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_void_p

import numpy as np
import pytest
from process_memory import ROUNDS, growth
from vulkan_kernels import (
    ADD,
    FLOAT32,
    HALF,
    INT32,
    MANY,
    POINTER,
    SUM,
    address,
    counter,
    load_add,
    load_bytes,
    load_half,
    load_kernel,
    load_module,
    load_sum,
    load_weighted,
    module_bytes,
    words,
)

from runtime_py.devices import list_devices
from runtime_py.tvm_runtime import load_runtime

ADD_ARGUMENTS = (POINTER, FLOAT32, INT32)


def facts():
    return next(entry for entry in list_devices() if entry["device"] == "vulkan:0")


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


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint32", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (3 << 20,)])  # the last one is copied in pieces when staged
def test_arrays_go_there_and_back(vulkan, dtype, shape):
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    tensor = vulkan.tensor(array)
    assert tuple(tensor.shape) == shape and str(tensor.dtype) == dtype
    np.testing.assert_array_equal(vulkan.host(tensor), array)
    assert not vulkan.host(vulkan.zeros(shape, dtype)).any()
    np.testing.assert_array_equal(vulkan.host(vulkan.tensor(array[..., ::-1])), array[..., ::-1])


def test_work_is_done_in_order_whatever_happens_to_the_arrays_meanwhile(vulkan):
    add, inputs, results = load_add(), vulkan.inputs(((1000,),), "float32"), []
    for turn in range(200):
        inputs.arrays[0][:] = turn
        inputs.send()
        for value in (0.5, 0.25):
            add(address(inputs.tensors[0]), value, 1000, 16, 64)
        result = vulkan.zeros((1000,), "float32")
        copy(inputs.tensors[0], result)
        results.append(result)
        inputs.arrays[0][:] = np.nan
    for turn, result in enumerate(results):
        np.testing.assert_array_equal(vulkan.host(result), np.full(1000, turn + 0.75, "f4"))


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


def test_threads_share_a_kernel(vulkan):
    add, tensors = load_add(), [vulkan.zeros((256,), "float32") for _ in range(4)]

    def launch(index):
        for _ in range(500):
            add(address(tensors[index]), float(index + 1), 256, 4, 64)

    with ThreadPoolExecutor(len(tensors)) as pool:
        list(pool.map(launch, range(len(tensors))))
    for index, tensor in enumerate(tensors):
        assert (vulkan.host(tensor) == 500 * (index + 1)).all()


def test_buffers_may_be_freed_while_kernels_that_use_them_wait(vulkan):
    add, total = load_add(), vulkan.zeros((1 << 16,), "float32")
    for _ in range(50):
        passing = vulkan.zeros((1 << 16,), "float32")
        add(address(passing), 1.0, 1 << 16, 1 << 10, 64)
        add(address(total), 1.0, 1 << 16, 1 << 10, 64)
        del passing
    assert (vulkan.host(total) == 50).all()


def test_modules_may_be_freed_while_their_kernels_wait(vulkan):
    total = vulkan.zeros((1 << 16,), "float32")
    for _ in range(20):
        load_add()(address(total), 1.0, 1 << 16, 1 << 10, 64)
        gc.collect()
    assert (vulkan.host(total) == 20).all()


def test_an_empty_launch_does_nothing(vulkan):
    before = counter("launches")
    load_add()(address(vulkan.zeros((1,), "float32")), 1.0, 0, 0, 64)
    assert counter("launches") == before


def test_a_grid_whose_size_wraps_is_not_taken_for_an_empty_one(vulkan):
    add = load_kernel("add", ADD, ADD_ARGUMENTS, tags=("blockIdx.x", "blockIdx.y", "threadIdx.x"))
    with pytest.raises(RuntimeError, match="launching kernel add in 4294967296 x 4294967296 x 1 work-groups, .* runs"):
        add(address(vulkan.zeros((1,), "float32")), 1.0, 1, 1 << 32, 1 << 32, 64)


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


def test_memory_in_use_counts_living_tensors(vulkan):
    gc.collect()
    before = counter("memory_in_use", 0)
    tensor = vulkan.zeros((1000,), "float32")
    assert counter("memory_in_use", 0) == before + 4000
    del tensor
    assert counter("memory_in_use", 0) == before


def allocate(bytes):
    ffi = load_runtime()
    return ffi.get_global_func("runtime.TVMTensorAllocWithScope")(
        ffi.Shape((bytes,)), ffi.dtype("uint8"), ffi.device("vulkan", 0), None)


def test_a_buffer_beyond_the_limit_is_refused_with_size_and_limit(vulkan):
    limit = facts()["max_allocation_bytes"]
    with pytest.raises(RuntimeError, match=f"{limit + 1} bytes is larger than .* allows .{limit} bytes"):
        allocate(limit + 1)


def test_more_than_all_memory_is_refused_with_what_is_in_use(vulkan):
    limit, total = facts()["max_allocation_bytes"], facts()["memory_bytes"]
    if total > 64 * limit:
        pytest.skip("this machine lacks a device with little memory")
    with pytest.raises(RuntimeError, match=rf"does not fit into the memory of .*\(\d+ of {total} bytes in use\)"):
        held = [allocate(limit) for _ in range(total // limit + 1)]
        del held
    gc.collect()
    assert not vulkan.host(vulkan.zeros((1,), "float32")).any()  # it goes on


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


def test_a_wrong_number_of_values_is_refused(vulkan):
    with pytest.raises(TypeError, match="kernel add takes 5 values, found 2"):
        load_add()(address(vulkan.zeros((1,), "float32")), 1.0)


@pytest.mark.parametrize(("name", "capability", "words_"), [
    ("sparse", "SPIR-V capability 41, which this runtime does not know", (2 << 16 | 17, 41)),  # SparseResidency
    ("linked", "SPIR-V capability 5, which", (2 << 16 | 17, 5))])
def test_a_kernel_that_needs_what_is_missing_is_refused_by_name(vulkan, name, capability, words_):
    code = words(ADD, name)
    module = load_bytes(module_bytes(name, (*code[:5], *words_, *code[5:]), ADD_ARGUMENTS))
    with pytest.raises(RuntimeError, match=f"kernel {name} needs {capability}"):
        module["check_device"](0)
    with pytest.raises(RuntimeError, match=f"kernel {name} needs {capability}"):
        module[name](address(vulkan.zeros((1,), "float32")), 1.0, 1, 1, 64)


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
    count = facts()["push_constant_bytes"] // 8 + 1
    module = load_module("add", ADD, (POINTER, *[INT32] * count))
    with pytest.raises(RuntimeError, match=rf"kernel add needs {8 * count} bytes of push constants, .* has"):
        module["check_device"](0)


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
