"""Vectors in memory on a Vulkan device against numpy: how wide loads are, which declarations buffers have."""

import re

import numpy as np
import pytest
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from vulkan_harness import library, on_device, shaders_of

from schedules.builder import kernel
from schedules.gpu.grid import launch

ITEMS = 64


def reversed_in_place(lanes):
    """x = x reversed, in one vector: what lanes read is what was there before."""
    with kernel(__name__, "int32") as k:
        x = k.tensor((lanes,))
        with launch((1,), (1,)), T.vectorized(0, lanes) as lane:
            T.buffer_store(x, x[lanes - 1 - lane], [lane])
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


WORDS = {(0, 8): "uvec4", (4, 8): "uvec2", (1, 8): "float16_t", (0, 4): "uvec2"}  # by what is read at a time


def words_of_halves(offset, lanes):
    """y[lanes / 2 * i:][:lanes / 2] = the bits of x[offset + lanes * i:][:lanes], two halves each."""
    with kernel(__name__, "int32") as k:
        x, y = k.tensor((lanes * ITEMS + 8,), "float16"), k.tensor((lanes // 2 * ITEMS,), "uint32")
        with launch((1,), (ITEMS,)) as (_, (item,)):
            words = T.reinterpret(f"uint32x{lanes // 2}", x[T.ramp(offset + item * lanes, 1, lanes)])
            T.buffer_store(y, words, [T.ramp(item * (lanes // 2), 1, lanes // 2)])
    return k.func


KERNELS = {
    **{f"reversed_{lanes}": lambda lanes=lanes: reversed_in_place(lanes) for lanes in (2, 3, 4, 8)},
    **{f"vectors_{offset}_{dtype}": lambda offset=offset, dtype=dtype: vectors(offset, dtype)
       for offset in (0, 1, 2, 4) for dtype in ("float32", "float16", "int8")},
    **{f"bits_{target}": lambda target=target: bits_of_words(target, 32 // np.dtype(target).itemsize // 8)
       for target in ("uint8", "int8", "uint16", "float16")},
    **{f"words_{offset}_{lanes}": lambda offset=offset, lanes=lanes: words_of_halves(offset, lanes)
       for offset, lanes in WORDS},
    **{f"guarded_{guard}": lambda guard=guard: guarded_vectors(guard) for guard in GUARDS},
    "vectors_while": vectors_while, "private_vectors": private_vectors,
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return library({name: make() for name, make in KERNELS.items()}, tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(7)


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


@pytest.mark.parametrize(("offset", "lanes"), WORDS)
def test_halves_are_read_as_words_where_addresses_allow(offset, lanes, kernels, rng):
    x = rng.standard_normal(lanes * ITEMS + 8).astype("float16")
    found = on_device(kernels[f"words_{offset}_{lanes}"], [x, np.zeros(lanes // 2 * ITEMS, "uint32")])[1]
    np.testing.assert_array_equal(found, x[offset:offset + lanes * ITEMS].view("uint32"))
    (shader,) = shaders_of({"k": words_of_halves(offset, lanes)})
    assert re.findall(r"readonly.*{ (\w+) ", shader.source) == [WORDS[offset, lanes]]


def test_private_vectors(kernels, rng):
    x = rng.standard_normal(8 * ITEMS).astype("float32")
    np.testing.assert_array_equal(on_device(kernels["private_vectors"], [x, np.zeros_like(x)])[1], 2 * x)
