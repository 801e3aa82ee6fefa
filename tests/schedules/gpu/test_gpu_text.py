"""The OpenCL text of the kernels that read weights, at a model's sizes."""

import re

import pytest
import tvm
from gpu_harness import TARGETS
from harness import module_of

from schedules import gpu
from schedules.tiles import GPU_TILES
from targets.limits import kernel_sources

TILES = GPU_TILES["adreno"]
KERNELS = {
    "linear": lambda: gpu.linear(TILES, 1792, 1792, "q4f16_1", residual_scale=0.3),
    "router": lambda: gpu.router(TILES, 40, 1792, "rms", 1e-5, 1.0, "float16"),
    "union": lambda: gpu.union(40),
    "sparse_up": lambda: gpu.sparse_up(TILES, 40, 1792, 128, "q4f16_1"),
    "sparse_down": lambda: gpu.sparse_down(TILES, 40, 1792, 128, "q4f16_1", 0.3),
}


@pytest.mark.parametrize("name", KERNELS)
def test_text(name):
    """Indices are 32-bit, and barriers stand outside of conditions. Rows are read four floats at a time, as are codes
    eight at a time; no loop over inputs is unrolled further."""
    source = tvm.compile(module_of(KERNELS[name]()), TARGETS["opencl"]).mod.imports[0].inspect_source("")
    texts = kernel_sources(source)
    assert texts
    for kernel, text in texts.items():
        assert not re.search(r"\b(u?long|double)\b", text), kernel
        assert all(line.startswith(("for ", "while ")) for around in barriers(text) for line in around), kernel
    if name in ("linear", "sparse_up", "sparse_down"):
        rows = *TILES.token_tiles, TILES.prefill_tile // TILES.slices
        assert [text.count("vload4(") for text in texts.values()] == [2 * count for count in rows]


def barriers(text):
    """Of every barrier, the statements around it within the kernel."""
    found, around = [], []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("}"):
            around.pop()
        if line.endswith("{"):
            around.append(line)
        if "barrier(" in line:
            found.append(around[1:])
    assert found
    return found
