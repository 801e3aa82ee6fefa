"""The shims run what they are given as a device would, and notice what a device would not forgive."""

import ctypes

import numpy as np
import pytest
from compiling import compile_kernels

ITEMS = 64
BARRIER = {"cuda": "__syncthreads()", "metal": "threadgroup_barrier(mem_flags::mem_threadgroup)"}
KERNELS = {  # of the float x[ITEMS] and the int n, by what is wrong with them
    "reverse": ("shared_x[i] = x[i];\n  BARRIER;\n  x[i] = shared_x[63 - i] + (float)n;", None),
    "no_barrier": ("shared_x[i] = x[i];\n  x[i] = shared_x[63 - i] + (float)n;", None),
    "unwritten": ("x[i] = shared_x[i];", None),
    "some_wait": ("if (i < n) {\n    BARRIER;\n  }\n  x[i] = 1.0f;", "7 of 64 work-items wait at a barrier"),
    "beyond": ("shared_x[i + n] = x[i];", "an index beyond its array in line"),
    "outside": ("x[i] = x[i + ((long)n << 40)];", "an access outside of its arguments"),
    "askew": ("float4 v = *(DEVICE float4*)(x + n);\n  x[i] = ELEMENT;", "a pointer that is null or not aligned in"),
    "vector": ("float4 v = *(DEVICE float4*)(x + (i & 60));\n  BARRIER;\n  x[i] = ELEMENT;", None),
}
CUDA = """// Function: {name}
extern "C" __global__ void __launch_bounds__(64) {name}(float* __restrict__ x, int n) {{
  __shared__ alignas(64) float shared_x[64];
  int i = ((int)threadIdx.x);
  {body}
}}

"""
METAL = """// Function: {name}
#include <metal_stdlib>
using namespace metal;
struct {name}_args_t {{
  int n[2];
}};
kernel void {name}(device float* x [[ buffer(0) ]], constant {name}_args_t& arg [[ buffer(1) ]],
  uint blockIdx [[threadgroup_position_in_grid]], uint threadIdx [[thread_position_in_threadgroup]]
) {{
  threadgroup float shared_x[64];
  int i = ((int)threadIdx);
  int n = arg.n[0];
  {body}
}}
"""


@pytest.fixture(scope="module", params=["cuda", "metal"])
def run(request, tmp_path_factory):
    """run(name, x, n): the kernel's failure, if any, when it changes x; in one group of ITEMS."""
    kind = request.param
    text = {"cuda": '#include <cuda_fp16.h>\n', "metal": ""}[kind]
    for name, (body, _) in KERNELS.items():
        body = body.replace("BARRIER", BARRIER[kind]).replace("DEVICE", {"cuda": "", "metal": "device"}[kind])
        body = body.replace("ELEMENT", {"cuda": "v.y", "metal": "v[1]"}[kind])
        text += {"cuda": CUDA, "metal": METAL}[kind].format(name=name, body=body)
    library = tmp_path_factory.mktemp("shims") / "kernels.so"
    compile_kernels(kind, text, library)
    loaded = ctypes.CDLL(str(library))

    def run(name, x, n=0):
        kernel = loaded[f"shim_{name}"]
        kernel.restype = ctypes.c_char_p
        said = kernel((ctypes.c_size_t * 6)(1, 1, 1, ITEMS, 1, 1), (ctypes.c_uint64 * 2)(x.ctypes.data, n))
        return said and said.decode()
    return run


@pytest.fixture
def x():
    memory = np.zeros(ITEMS + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    memory[start:start + ITEMS] = np.arange(ITEMS)
    return memory[start:start + ITEMS]


def test_barriers_and_numbers(run, x):
    for _ in range(2):
        assert run("reverse", x, 5) is None
    assert np.array_equal(x, np.arange(ITEMS) + 10)


def test_vectors(run, x):
    assert run("vector", x) is None
    assert np.array_equal(x, np.arange(ITEMS) // 4 * 4 + 1)


def test_a_missing_barrier_changes_results(run, x):
    assert run("no_barrier", x) is None
    assert np.isnan(x).any()


def test_shared_memory_begins_as_poison(run, x):
    assert run("reverse", x) is None and run("unwritten", x) is None
    assert np.isnan(x).all()


@pytest.mark.parametrize("name", [name for name, (_, failure) in KERNELS.items() if failure])
def test_faults_end_the_launch(run, x, name):
    assert KERNELS[name][1] in run(name, x, 7)
    assert run("reverse", x) is None  # and the next one is whole
