"""Kernels of the constructs that statements are made of, on a Vulkan device against numpy."""

import re

import numpy as np
import pytest
from tvm import tirx
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


def reversed_in_place(lanes):
    """x = x reversed, in one vector: what lanes read is what was there before."""
    with kernel(__name__, "int32") as k:
        x = k.tensor((lanes,))
        with launch((1,), (1,)), T.vectorized(0, lanes) as lane:
            T.buffer_store(x, x[lanes - 1 - lane], [lane])
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


# What else a kernel of vectors reads from the buffer that it writes, where that need not be evaluated.
GUARDS = {
    "select": lambda y, i: tirx.Select(i < 32, y, T.broadcast(T.float32(-1), 4)),
    "if_then_else": lambda y, i: tirx.if_then_else(i < 32, y, T.broadcast(T.float32(-1), 4)),
    "and": lambda y, i: T.cast(tirx.And(T.broadcast(i < 32, 4), y < T.broadcast(T.float32(9), 4)), "float32x4"),
    "or": lambda y, i: T.cast(tirx.Or(T.broadcast(i < 32, 4), y < T.broadcast(T.float32(9), 4)), "float32x4"),
}


def guarded_vectors(guard, written=True):
    """y[i] = x[i] + guard(y[i]), in vectors of 4; guard(x[i]) unless ``written`` is what is guarded."""
    with kernel(__name__, "int32") as k:
        x, y = k.tensor((4 * ITEMS,)), k.tensor((4 * ITEMS,))
        with launch((1,), (ITEMS,)) as (_, (item,)):
            at = T.ramp(item * 4, 1, 4)
            T.buffer_store(y, x[at] + GUARDS[guard](y[at], item) if written else GUARDS[guard](x[at], item), [at])
    return k.func


def vectors_while():
    """x[i] += 1 in vectors of 4 while the first is less than 5."""
    with kernel(__name__, "int32") as k:
        x = k.tensor((4 * ITEMS,))
        with launch((1,), (ITEMS,)) as (_, (item,)):
            at = T.ramp(item * 4, 1, 4)
            with T.While(tirx.Shuffle([x[at]], [0]) < T.float32(5)):
                T.buffer_store(x, x[at] + T.broadcast(T.float32(1), 4), [at])
    return k.func


def vectors(offset, dtype="float32"):
    """y[i] = x[i + offset] + x[0], in vectors of 4."""
    with kernel(__name__, "int32") as k:
        x, y = k.tensor((4 * ITEMS + 4,), dtype), k.tensor((4 * ITEMS,), dtype)
        with launch((1,), (ITEMS,)) as (_, (item,)), T.vectorized(0, 4) as lane:
            T.buffer_store(y, x[item * 4 + lane + offset] + x[0], [item * 4 + lane])
    return k.func


def private_vectors():
    """y[i] = 2 x[i], by way of a private array that is read and written in vectors only."""
    with kernel(__name__, "int32") as k:
        x, y = k.tensor((8 * ITEMS,)), k.tensor((8 * ITEMS,))
        with launch((1,), (ITEMS,)) as (_, (item,)):
            kept = T.alloc_buffer((8,), "float32", scope="local")
            with T.serial(0, 2) as part, T.vectorized(0, 4) as lane:
                T.buffer_store(kept, x[item * 8 + part * 4 + lane], [part * 4 + lane])
            with T.serial(0, 2) as part, T.vectorized(0, 4) as lane:
                T.buffer_store(y, kept[part * 4 + lane] * T.float32(2), [item * 8 + part * 4 + lane])
    return k.func


def bits_of_words(target, lanes):
    """y[lanes * i:][:lanes] = the bits of x[i], 32, as ``target``; z: the same and back."""
    with kernel(__name__, "int32") as k:
        x, y, z = k.tensor((ITEMS,), "uint32"), k.tensor((ITEMS * lanes,), target), k.tensor((ITEMS,), "int32")
        with launch((1,), (ITEMS,)) as (_, (item,)):
            parts = T.bind(T.reinterpret(f"{target}x{lanes}", x[item]))
            T.buffer_store(y, parts, [T.ramp(item * lanes, 1, lanes)])
            T.buffer_store(z, T.reinterpret("int32", parts), [item])
    return k.func


KERNELS = {
    "sums_int32": lambda: group_sums("int32"), "sums_int64": lambda: group_sums("int64"), "collatz": collatz,
    "histogram": histogram, "extent": extent_that_changes,
    **{f"reversed_{dtype}": lambda dtype=dtype: reversed_in_memory(dtype)
       for dtype in ("float32", "float16", "bool", "int8", "uint16", "int64")},
    **{f"reversed_{lanes}": lambda lanes=lanes: reversed_in_place(lanes) for lanes in (2, 3, 4, 8)},
    **{f"vectors_{offset}_{dtype}": lambda offset=offset, dtype=dtype: vectors(offset, dtype)
       for offset in (0, 1, 2, 4) for dtype in ("float32", "float16", "int8")},
    **{f"bits_{target}": lambda target=target: bits_of_words(target, 32 // np.dtype(target).itemsize // 8)
       for target in ("uint8", "int8", "uint16", "float16")},
    **{f"guarded_{guard}": lambda guard=guard: guarded_vectors(guard) for guard in GUARDS},
    "vectors_while": vectors_while, "private_vectors": private_vectors, "far_values": far_values,
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


@pytest.mark.parametrize("lanes", [2, 3, 4, 8])
def test_a_vector_is_read_before_it_is_written(lanes, kernels):
    x = np.arange(lanes, dtype="float32")
    (found,) = on_device(kernels[f"reversed_{lanes}"], [x])
    np.testing.assert_array_equal(found, x[::-1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_vectors_wherever_they_begin(offset, dtype, kernels, rng):
    x = rng.integers(-9, 9, 4 * ITEMS + 4).astype(dtype)
    found = on_device(kernels[f"vectors_{offset}_{dtype}"], [x, np.zeros(4 * ITEMS, dtype)])[1]
    np.testing.assert_array_equal(found, x[offset:offset + 4 * ITEMS] + x[0])


@pytest.mark.parametrize(("offset", "loads"), [(0, {"float", "vec4"}), (1, {"float"}), (2, {"float", "vec2"}),
                                              (4, {"float", "vec4"})])
def test_loads_are_as_wide_as_addresses_allow(offset, loads):
    (shader,) = shaders_of({"k": vectors(offset)})
    declared = re.findall(r"binding = \d\) (readonly)?.*{ (\w+) ", shader.source)
    assert {element for read_only, element in declared if read_only} == loads
    assert [element for read_only, element in declared if not read_only] == ["vec4"]


@pytest.mark.parametrize("guard", GUARDS)
def test_what_need_not_be_evaluated_is_not_loaded_in_advance(guard):
    """A wide load would be a statement before."""
    (shader,) = shaders_of({"k": guarded_vectors(guard, written=False)})
    assert re.findall(r"readonly.*{ (\w+) ", shader.source) == ["float"]


def bindings(func):
    """Those of the declarations of buffers."""
    (shader,) = shaders_of({"k": func})
    return re.findall(r"binding = (\d)\) (?:\w+ )*buffer", shader.source)


@pytest.mark.parametrize("guard", GUARDS)
def test_a_buffer_that_is_written_is_declared_once(guard, kernels, rng):
    assert bindings(guarded_vectors(guard)) == ["0", "1"]
    x, y = (rng.integers(0, 20, 4 * ITEMS).astype("float32") for _ in range(2))
    first, less = np.arange(4 * ITEMS) < 128, y < 9
    expected = {"and": first & less, "or": first | less}.get(guard, np.where(first, y, -1))
    np.testing.assert_array_equal(on_device(kernels[f"guarded_{guard}"], [x, y])[1], x + expected)


def test_a_buffer_that_a_loop_tests_is_declared_once(kernels):
    assert bindings(vectors_while()) == ["0"]
    x = np.arange(4 * ITEMS, dtype="float32").reshape(ITEMS, 4) / 2
    (found,) = on_device(kernels["vectors_while"], [x.ravel()])
    rounds = np.maximum(np.ceil(5 - x[:, :1]), 0)
    np.testing.assert_array_equal(found, (x + rounds).ravel())


@pytest.mark.parametrize("target", ["uint8", "int8", "uint16", "float16"])
def test_bits_of_a_number_as_a_vector(target, kernels, rng):
    x = rng.integers(0, 2**32, ITEMS, "uint32") & 0xBBFFBBFF | 0x10001000  # no infinite nor tiny halves
    parts = x.view(target)
    _, found, back = on_device(kernels[f"bits_{target}"], [x, np.zeros_like(parts), np.zeros(ITEMS, "int32")])
    np.testing.assert_array_equal(found.view("uint8"), parts.view("uint8"))
    np.testing.assert_array_equal(back, x.view("int32"))


def test_private_vectors(kernels, rng):
    x = rng.standard_normal(8 * ITEMS).astype("float32")
    np.testing.assert_array_equal(on_device(kernels["private_vectors"], [x, np.zeros_like(x)])[1], 2 * x)


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
