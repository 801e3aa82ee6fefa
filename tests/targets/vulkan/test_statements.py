"""Kernels of the constructs that statements are made of, on a Vulkan device against numpy; vectors: test_vectors.py."""

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from vulkan_harness import library, on_device, shaders_of

from schedules.builder import choose, kernel, when
from schedules.gpu.grid import Local, barrier, launch, shared

ITEMS = 64


def group_sums(index_dtype):
    """sums[g] of x[n] by halves in threadgroup memory; the last group is partly empty."""
    with kernel(__name__, index_dtype) as k:
        n = k.rows_var()
        x = k.tensor((n,))
        sums = k.tensor((T.floordiv(n + (ITEMS - 1), ITEMS),))
        with launch((T.floordiv(n + (ITEMS - 1), ITEMS),), (ITEMS,)) as ((group,), (item,)):
            memory = shared((ITEMS,))
            i = group * ITEMS + item
            T.buffer_store(memory, T.if_then_else(i < n, x[T.min(i, n - 1)], T.float32(0)), [item])
            for half in (32, 16, 8, 4, 2, 1):
                barrier()
                with when(item < half):
                    T.buffer_store(memory, memory[item] + memory[item + half], [item])
            with when(item == 0):
                T.buffer_store(sums, memory[0], [group])
    return k.func


def collatz():
    """steps[i]: how often x[i] must be halved, or tripled and increased, to become 1; at most 200."""
    with kernel(__name__, "int32") as k:
        x, steps = k.tensor((ITEMS,), "int32"), k.tensor((ITEMS,), "int32")
        with launch((1,), (ITEMS,)) as (_, (item,)):
            value, count = Local(1, x[item], "int32"), Local(1, 0, "int32")
            with T.While(T.And(value[0] != 1, count[0] < 200)):
                count.add(0, T.int32(1))
                choose(T.truncmod(value[0], 2) == 0, lambda: value.set(0, T.truncdiv(value[0], 2)),
                       lambda: value.set(0, value[0] * 3 + 1))
            T.buffer_store(steps, count[0], [item])
    return k.func


def histogram():
    """counts[i, v]: how many of the eight nibbles of x[i] are v: a private array with indices from data."""
    with kernel(__name__, "int32") as k:
        x, counts = k.tensor((ITEMS,), "uint32"), k.tensor((ITEMS, 16), "uint8")
        with launch((1,), (ITEMS,)) as (_, (item,)):
            found = Local(16, 0, "int32")
            with T.serial(0, 8) as nibble:
                value = T.bind(T.cast(T.bitwise_and(T.shift_right(x[item], T.cast(nibble * 4, "uint32")),
                                                    T.uint32(15)), "int32"))
                found.set(value, found[value] + 1)
            with T.serial(0, 16) as value:
                T.buffer_store(counts, T.cast(found[value], "uint8"), [item, value])
    return k.func


def reversed_in_memory(dtype):
    """y = x reversed, by way of threadgroup memory of ``dtype``; names are GLSL's own words."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            x = T.match_buffer(T.arg("buffer", T.handle()), (ITEMS,), dtype)
            y = T.match_buffer(T.arg("gl_Position", T.handle()), (ITEMS,), dtype)
            with launch((1,), (ITEMS,)) as (_, (item,)):
                memory = shared((ITEMS,), dtype)
                T.buffer_store(memory, x[item], [item])
                barrier()
                T.buffer_store(y, memory[ITEMS - 1 - item], [item])
    return builder.get()


def extent_that_changes():
    """y[i] = x[i] doubled: a loop whose extent its body changes runs as often as the extent said at first."""
    with kernel(__name__, "int32") as k:
        x, y = k.tensor((ITEMS,), "int32"), k.tensor((ITEMS,), "int32")
        with launch((1,), (ITEMS,)) as (_, (item,)):
            count = Local(1, x[item], "int32")
            with T.serial(0, count[0]):
                count.add(0, T.int32(1))
            T.buffer_store(y, count[0], [item])
    return k.func


def far_values():
    """y[i] = x[i] + x[63 - i] > 0, z[i] = x[i] n > 2^30, in int64, of what is read as int32 and given a name."""
    with kernel(__name__, "int64") as k:
        n = k.rows_var()
        x, y, z = k.tensor((n,), "int32"), k.tensor((n,), "bool"), k.tensor((n,), "bool")
        with launch((1,), (ITEMS,)) as (_, (item,)):
            one, other = (T.cast(T.bind(x[i]), "int64") for i in (item, ITEMS - 1 - item))
            T.buffer_store(y, one + other > T.int64(0), [item])
            T.buffer_store(z, one * n > T.int64(2**30), [item])
    return k.func


KERNELS = {
    "sums_int32": lambda: group_sums("int32"), "sums_int64": lambda: group_sums("int64"), "collatz": collatz,
    "histogram": histogram, "extent": extent_that_changes, "far_values": far_values,
    **{f"reversed_{dtype}": lambda dtype=dtype: reversed_in_memory(dtype)
       for dtype in ("float32", "float16", "bool", "int8", "uint16", "int64")},
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return library({name: make() for name, make in KERNELS.items()}, tmp_path_factory.mktemp("statements"))


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("name", ["sums_int32", "sums_int64"])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_threadgroup_memory_and_barriers(name, n, kernels, rng):
    x = rng.integers(-8, 8, n).astype("float32")
    found = on_device(kernels[name], [x, np.zeros(-(-n // ITEMS), "float32")])[1]
    np.testing.assert_array_equal(found, np.add.reduceat(x, np.arange(0, n, ITEMS)))


def test_while(kernels):
    x = np.arange(1, ITEMS + 1, dtype="int32")

    def steps(value):
        count = 0
        while value != 1:
            value, count = (value // 2 if value % 2 == 0 else 3 * value + 1), count + 1
        return count

    found = on_device(kernels["collatz"], [x, np.zeros_like(x)])[1]
    np.testing.assert_array_equal(found, [steps(int(value)) for value in x])


def test_private_array_with_indices_from_data(kernels, rng):
    x = rng.integers(0, 2**32, ITEMS, "uint32")
    nibbles = x[:, None] >> np.arange(0, 32, 4, dtype="uint32") & 15
    expected = (nibbles[:, :, None] == np.arange(16)).sum(1).astype("uint8")
    np.testing.assert_array_equal(on_device(kernels["histogram"], [x, np.zeros((ITEMS, 16), "uint8")])[1], expected)


def test_a_loops_extent_is_evaluated_once(kernels):
    x = np.arange(ITEMS, dtype="int32")
    np.testing.assert_array_equal(on_device(kernels["extent"], [x, np.zeros_like(x)])[1], 2 * x)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bool", "int8", "uint16", "int64"])
def test_threadgroup_memory_of_all_types(dtype, kernels, rng):
    x = (rng.integers(0, 2, ITEMS) if dtype == "bool" else rng.integers(0, 99, ITEMS)).astype(dtype)
    found = on_device(kernels[f"reversed_{dtype}"], [x, np.zeros_like(x)])[1]
    np.testing.assert_array_equal(found, x[::-1])


def test_indices_in_64_bits_are_computed_in_32():
    (shader,) = shaders_of({"k": group_sums("int64")})
    assert set(shader.arguments) == {"handle", "int32"} and "int64_t" not in shader.source


def test_what_is_read_may_exceed_32_bits(kernels, rng):
    """Other than sizes and indices."""
    x = rng.integers(-2**31, 2**31, ITEMS).astype("int32")
    wide, wider = x.astype("int64") + x[::-1], x.astype("int64") * ITEMS
    assert (np.abs(wide) >= 2**31).any()
    found = on_device(kernels["far_values"], [x, *np.zeros((2, ITEMS), "bool")])[1:]
    np.testing.assert_array_equal(found, [wide > 0, wider > 2**30])
