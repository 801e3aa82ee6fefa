"""Every kernel compiles for every vector unit, into vector instructions without calls to a maths library."""

import re
from dataclasses import replace

import pytest
import tvm
from harness import DTYPES, module_of

from schedules import cpu
from schedules.tiles import CPU_TILES

TARGETS = {
    "avx512vnni": {"mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake", "mattr": ["-prefer-256-bit"]},
    "avxvnni": {"mtriple": "x86_64-linux-gnu", "mcpu": "alderlake"},
    "avx512": {"mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512", "mattr": ["-prefer-256-bit"]},
    "avx2": {"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    "sse": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"},
    "dotprod": {"mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]},
    "neon": {"mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
}
# A multiply-add over a whole register (SSE has no fused one).
_ZMM, _YMM, _NEON = r"vfmadd\w+ps\s.*%zmm", r"vfmadd\w+ps\s.*%ymm", r"fml[as]\s+v\d+\.4s"
MULTIPLY_ADD = {"avx512vnni": _ZMM, "avx512": _ZMM, "avxvnni": _YMM, "avx2": _YMM, "sse": r"mulps\s.*%xmm",
                "dotprod": _NEON, "neon": _NEON}
# Four products of bytes added to each lane of a whole register.
DOT = {"avx512vnni": r"vpdpbusd\s.*%zmm", "avxvnni": r"vpdpbusd\s.*%ymm", "dotprod": r"sdot\s+v\d+\.4s"}
LIBRARY_CALL = re.compile(r"\b(?:expf|fmaf|fma|sqrtf|powf|fmaxf|fminf|floorf|roundf)\b")
# By tiles, dtype (of weights without a 4-bit format, and of the cache) and activations.
KERNELS = {
    "accept": lambda t, d, a: cpu.accept(t, 300),
    "append_heads": lambda t, d, a: cpu.append_heads(t, 64, 2, 64, 64, x_width=512, offset=256, cache_dtype=d),
    "append_latent": lambda t, d, a: cpu.append_latent(t, 64, 64, 64, 64, 1e-6, x_width=224, offset=96, dtype=d,
                                                       cache_dtype=d),
    "apply_bitmask": lambda t, d, a: cpu.apply_bitmask(300),
    "apply_logit_bias": lambda t, d, a: cpu.apply_logit_bias(300),
    "apply_penalty": lambda t, d, a: cpu.apply_penalty(300),
    "attention": lambda t, d, a: cpu.attention(t, 4, 2, 64, key_dim=64, value_offset=64, value_dim=64, width=128,
                                               scale=0.1, cache_dtype=d),
    "commit": lambda t, d, a: cpu.commit(t, 64, 2, 128, d),
    "embedding": lambda t, d, a: cpu.embedding(t, 97, 64, d, 12.0),
    "encode": lambda t, d, a: cpu.encode(t, 96, a),
    "expanded_heads": lambda t, d, a: cpu.expanded_heads(t, 2, 64, 64, 96, 64, x_width=224, offset=160, dtype=d),
    "gated_silu": lambda t, d, a: cpu.gated_silu(t, 96, a),
    "gather_rows": lambda t, d, a: cpu.gather_rows(t, 96, d),
    "latent_heads": lambda t, d, a: cpu.latent_heads(t, 2, 64, 64, 64, 1e-6, x_width=224, offset=96, weight_dtype=d,
                                                     dtype=d),
    "latent_query": lambda t, d, a: cpu.latent_query(t, 2, 96, 64, 32, 64, 64, _format(d, a), a),
    "linear": lambda t, d, a: cpu.linear(t, 96, 97, _format(d, a), a, bias_dtype=d, residual_scale=0.5),
    "linear_heads": lambda t, d, a: cpu.linear_heads(t, 2, 96, 97, _format(d, a), a),
    "peak": lambda t, d, a: cpu.peak(t, 768, a),
    "rms_norm": lambda t, d, a: cpu.rms_norm(t, 96, 1e-5, d, a),
    "rope_heads": lambda t, d, a: cpu.rope_heads(t, 4, 2, 64, 64, d),
    "rope_query": lambda t, d, a: cpu.rope_query(t, 2, 64, 64, x_width=384),
    "router": lambda t, d, a: cpu.router(t, 40, 96, "rms", 1e-5, 1.0, d, a),
    "row_numbers": lambda t, d, a: cpu.row_numbers(),
    "scatter_rows": lambda t, d, a: cpu.scatter_rows(t, 96, d),
    "softmax_with_temperature": lambda t, d, a: cpu.softmax_with_temperature(t, 300),
    "sparse_down": lambda t, d, a: cpu.sparse_down(t, 20, 96, 64, _format(d, a), 0.5, a),
    "sparse_up": lambda t, d, a: cpu.sparse_up(t, 20, 96, 64, _format(d, a), a),
    "top_k": lambda t, d, a: cpu.top_k(t, 300, 10, mapped=True),
    "union": lambda t, d, a: cpu.union(20),
    "value_up": lambda t, d, a: cpu.value_up(t, 2, 64, 96, 96, _format(d, a), d, a),
    "whole_vocabulary": lambda t, d, a: cpu.whole_vocabulary(t, 300, 96),
    "widen": lambda t, d, a: cpu.widen(t, 2, 96, 64, d),
    "value_projection": lambda t, d, a: cpu.attention(
        t, 4, 1, 64, key_dim=96, value_offset=0, value_dim=64, width=96, scale=0.1, cache_dtype=d, v_dim=32,
        weight_format=_format(d, a), activations=a),
}
NO_ARITHMETIC = {"apply_bitmask", "apply_logit_bias", "apply_penalty", "commit", "embedding", "gather_rows",
                 "row_numbers", "scatter_rows", "union", "whole_vocabulary", "widen"}
CODES = {"encode", "gated_silu", "latent_query", "linear", "linear_heads", "peak", "rms_norm", "router",
         "sparse_down", "sparse_up", "value_projection", "value_up"}
DOTS = CODES - {"encode", "gated_silu", "rms_norm", "router"}


def _format(dtype, mode):
    return dtype if mode == "f32" else {"float32": "q4f32_1", "float16": "q4f16_1"}[dtype]


def assembly(unit, func):
    target = tvm.target.Target({"kind": "llvm", **TARGETS[unit]})
    return tvm.compile(module_of(func), target).mod.inspect_source("asm")


def test_all_kernels_are_listed():
    assert set(KERNELS) - {"value_projection"} == {name for name in cpu.__all__ if name.islower()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"encode"}))
@pytest.mark.parametrize("unit", sorted(set(TARGETS) - set(DOT)))
def test_kernel_is_vectorised(unit, name, dtype):
    text = assembly(unit, KERNELS[name](CPU_TILES[unit], dtype, "f32"))
    assert not LIBRARY_CALL.findall(text)
    assert name in NO_ARITHMETIC or re.search(MULTIPLY_ADD[unit], text)


@pytest.mark.parametrize("mode, dtype", [("int8", "float16"), ("int8x2", "float32")])
@pytest.mark.parametrize("name", sorted(CODES))
@pytest.mark.parametrize("unit", DOT)
def test_kernel_multiplies_bytes(unit, name, mode, dtype):
    tiles = replace(CPU_TILES[unit], coded_token_tiles=((1, 2), (1,)))
    text = assembly(unit, KERNELS[name](tiles, dtype, mode))
    assert not LIBRARY_CALL.findall(text)
    assert name == "peak" or re.search(MULTIPLY_ADD[unit], text)
    assert name not in DOTS or re.search(DOT[unit], text)
