"""Every kernel compiles for every vector unit, into vector instructions without calls to a maths library."""

import re
from types import SimpleNamespace

import pytest
import tvm
from harness import DTYPES, module_of

from schedules import cpu
from schedules.tiles import CPU_TILES

TARGETS = {
    "avx512": {"mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512", "mattr": ["-prefer-256-bit"]},
    "avx2": {"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    "sse": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"},
    "neon": {"mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
}
# A multiply-add over a whole register (SSE has no fused one).
MULTIPLY_ADD = {"avx512": r"vfmadd\w+ps\s.*%zmm", "avx2": r"vfmadd\w+ps\s.*%ymm", "sse": r"mulps\s.*%xmm",
                "neon": r"fml[as]\s+v\d+\.4s"}
LIBRARY_CALL = re.compile(r"\b(?:expf|fmaf|fma|sqrtf|powf|fmaxf|fminf|floorf|roundf)\b")
KERNELS = {
    "append_heads": lambda t, d: cpu.append_heads(t, 64, 2, 64, 64, x_width=512, offset=256, cache_dtype=d),
    "append_latent": lambda t, d: cpu.append_latent(t, 64, 64, 64, 64, 1e-6, x_width=224, offset=96, dtype=d,
                                                    cache_dtype=d),
    "attention": lambda t, d: cpu.attention(t, 4, 2, 64, key_dim=64, value_offset=64, value_dim=64, width=128,
                                            scale=0.1, cache_dtype=d),
    "commit": lambda t, d: cpu.commit(t, 64, 2, 128, d),
    "embedding": lambda t, d: cpu.embedding(t, 97, 64, d, 12.0),
    "linear": lambda t, d: cpu.linear(t, 96, 97, d, bias_dtype=d, residual_scale=0.5),
    "rms_norm": lambda t, d: cpu.rms_norm(t, 96, 1e-5, d),
    "rope_query": lambda t, d: cpu.rope_query(t, 2, 64, 64, x_width=384, stride=192, offset=128, latent=64),
    "router": lambda t, d: cpu.router(t, 40, "rms", 1e-5, 1.0, d),
    "sparse_down": lambda t, d: cpu.sparse_down(t, 20, 96, 64, d, 0.5),
    "sparse_up": lambda t, d: cpu.sparse_up(t, 20, 96, 64, d),
    "union": lambda t, d: cpu.union(20),
}
ARITHMETIC = {"append_heads", "append_latent", "attention", "linear", "rms_norm", "rope_query", "router", "sparse_down",
              "sparse_up"}


@pytest.fixture(scope="module", params=TARGETS)
def unit(request):
    return SimpleNamespace(name=request.param, tiles=CPU_TILES[request.param],
                           target=tvm.target.Target({"kind": "llvm", **TARGETS[request.param]}))


def assembly(func, target):
    return tvm.compile(module_of(func), target).mod.inspect_source("asm")


def test_all_kernels_are_listed():
    assert set(KERNELS) == {name for name in cpu.__all__ if name.islower()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_vectorised(unit, name, dtype):
    text = assembly(KERNELS[name](unit.tiles, dtype), unit.target)
    assert not LIBRARY_CALL.findall(text)
    if name in ARITHMETIC:
        assert re.search(MULTIPLY_ADD[unit.name], text)
