"""Kernels on tensor cores, in TVM's CUDA C++ on the processor: the instruction is a shim."""

from dataclasses import replace

import numpy as np
import pytest
from gpu_kernels import Built
from shim_kernels import library, shim_device
from tvm.s_tir.tensor_intrin.cuda import shared_16x16_to_ldmatrix_32x8_layout as place
from tvm.script.ir_builder import tirx as T

from runtime_py.bench.calls import Factory
from runtime_py.selftest.checks import TOKENS, check_kernel
from runtime_py.selftest.subject import Subject
from schedules import gpu, twins
from schedules.builder import kernel, when
from schedules.gpu.tensor_cores import mma
from schedules.layout import pack_rows
from schedules.tiles import GPU_TILES

EXACT = 1e-12  # NMSE of float32 arithmetic against float64
TILES = replace(GPU_TILES["cuda"], tensor_cores=True, token_tiles=(1,), prefill_tile=0)  # for all but one token
INPUTS, OUTPUTS, EXPERTS = 96, 45, 5
KERNELS = {  # inputs that do not divide by the warps of a group, outputs that do not fill a tile, padded and not
    "linear": (dict(inputs=INPUTS, outputs=OUTPUTS, weight_format="float16", activations="f32", bias_dtype="float32",
                    residual_scale=0.5, row_blocks=()), (OUTPUTS, INPUTS), TILES.output_tile),
    "sparse_up": (dict(experts=EXPERTS, inputs=INPUTS, expert_size=40, weight_format="float16", activations="f32"),
                  (EXPERTS, 40, INPUTS), TILES.expert_tile(40)),
    "sparse_down": (dict(experts=EXPERTS, outputs=OUTPUTS, expert_size=64, weight_format="float16", residual_scale=0.7,
                         activations="f32"), (EXPERTS, OUTPUTS, 64), TILES.output_tile),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def normal(rng, *shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


def nmse(found, expected):
    return ((found - expected) ** 2).sum() / (expected**2).sum()


def call(kernel, shape, *arrays):
    """What a kernel writes, float32 of ``shape``."""
    device = shim_device("cuda")
    y = device.tensor(np.full(shape, np.nan, np.float32))
    kernel(*map(device.tensor, arrays), y)
    return device.host(y).astype(float)


@pytest.fixture(scope="module")
def built():
    """By factory the kernel and its weights."""
    rng, found = np.random.default_rng(5), {}
    for name, (arguments, shape, tile) in KERNELS.items():
        func = getattr(gpu, name)(TILES, **arguments)
        names = {"linear": (None, "w", "bias"), "sparse_up": (None,) * 6 + ("w",),
                 "sparse_down": (None,) * 5 + ("w", None)}[name]
        weights = {"w": pack_rows(normal(rng, *shape, dtype="float16"), tile, "float16"), "bias": normal(rng, OUTPUTS)}
        found[name] = Built(f"{name}_mma", Factory(name, arguments, names), func, weights)
    return found


@pytest.fixture(scope="module")
def engine(built):
    return library("cuda", tuple(built.values()))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_their_twins(built, engine, name):
    one = built[name]
    result = check_kernel(one.name, one.factory, Subject(one.factory.arguments, one.factory.weights, one.weights, 3),
                          engine, (*TOKENS, 16, 64))
    assert result.problem is None and result.nmse <= EXACT


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_small_and_large_numbers_keep_their_digits(rng, engine, size):
    """As half-precision numbers these would have lost some."""
    x, w = normal(rng, 16, INPUTS) * np.float32(size), normal(rng, OUTPUTS, INPUTS, dtype="float16")
    zeros = np.zeros((16, OUTPUTS), np.float32)
    y = call(engine.library.kernel("linear_mma"), zeros.shape, x, pack_rows(w, TILES.output_tile, "float16"), zeros[0],
             zeros)
    assert nmse(y, 0.5 * twins.linear(x, w)) <= EXACT


def test_what_is_too_large_is_not_a_number(rng, engine):
    x, zeros = normal(rng, 16, INPUTS), np.zeros((16, OUTPUTS), np.float32)
    x[3, 7] = 7e4
    w = pack_rows(normal(rng, OUTPUTS, INPUTS, dtype="float16"), TILES.output_tile, "float16")
    y = call(engine.library.kernel("linear_mma"), zeros.shape, x, w, zeros[0], zeros)
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, axis=0)).all()


def one_instruction(lanes):
    """A kernel of one warp, of which so many lanes carry it out: registers a, b, sums -> sums."""
    with kernel(__name__) as k:
        a, b, c = k.tensor((32, 4), "uint32"), k.tensor((32, 2), "uint32"), k.tensor((32, 4))
        y = k.tensor((32, 4))
        with T.launch_thread("threadIdx.x", 32) as lane:
            sums = T.alloc_buffer((4,), "float32", scope="local")
            for i in range(4):
                T.buffer_store(sums, c[lane, i], [i])
            with when(lane < lanes):
                mma([sums[i] for i in range(4)], [a[lane, i] for i in range(4)], [b[lane, i] for i in range(2)])
            for i in range(4):
                T.buffer_store(y, sums[i], [lane, i])
    return Built(f"lanes_{lanes}", None, k.func, None)


@pytest.fixture(scope="module")
def warps():
    """Such kernels, by the number of lanes."""
    found = {lanes: one_instruction(lanes) for lanes in (16, 32)}
    made = library("cuda", tuple(found.values())).library
    return {lanes: made.kernel(one.name) for lanes, one in found.items()}


def test_the_instruction_is_as_tvm_lays_it_out(rng, warps):
    """Against matrices; where their numbers are in registers is TVM's knowledge."""
    left, right, start = normal(rng, 16, 16, dtype="float16"), normal(rng, 16, 8, dtype="float16"), normal(rng, 16, 8)
    halves, other, sums = np.zeros((32, 8), np.float16), np.zeros((32, 4), np.float16), np.zeros((32, 4), np.float32)
    for i, j in np.ndindex(16, 16):
        halves[place(i, j)] = left[i, j]
    for j, i in np.ndindex(8, 16):
        lane, register = place(j, i)
        other[lane, register // 4 * 2 + register % 2] = right[i, j]
    for i, j in np.ndindex(16, 8):
        sums[place(i, j)] = start[i, j]
    found = call(warps[32], (32, 4), halves.view(np.uint32), other.view(np.uint32), sums)
    product = np.array([[found[place(i, j)] for j in range(8)] for i in range(16)])
    assert nmse(product, left.astype(float) @ right.astype(float) + start) <= EXACT


def test_a_part_of_a_warp_ends_the_launch(warps):
    arguments = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32), np.zeros((32, 4), np.float32)
    with pytest.raises(RuntimeError, match="16 of 32 work-items wait at an instruction of their warp"):
        call(warps[16], (32, 4), *arguments)
    assert not call(warps[32], (32, 4), *arguments).any()  # the next one is whole
