"""What is added to TVM's CUDA C++."""

import pytest
import tvm
from tvm.script.ir_builder import tirx as T

from schedules.builder import kernel
from targets import find_target
from targets.cuda.text import completed, with_room
from targets.limits import kernel_sources


def test_kernels_are_named_and_not_declared():
    head = "#include <x>\n__device__ half max(half a, half b)\n{\n}\n"
    a = 'extern "C" __global__ void __launch_bounds__(128) a_kernel(float* __restrict__ x, int n)'
    b = 'extern "C" __global__ void b(int n)'
    text = f"{head}{a};\n{b};\n{a} {{\n  x[0] = n;\n}}\n\n{b} {{\n}}\n"
    bounded = a.replace("(128)", "(128, 4)")
    named = f"{head}// Function: a_kernel\n{bounded} {{\n  x[0] = n;\n}}\n\n// Function: b\n{b} {{\n}}\n"
    assert completed(text) == named
    assert kernel_sources(named) == {"a_kernel": f"{bounded} {{\n  x[0] = n;\n}}\n\n", "b": f"{b} {{\n}}\n"}


@pytest.mark.parametrize(("threads", "blocks"), [(1024, 1), (256, 2), (192, 2), (32, 16), (16, 16)])
def test_threads_have_128_registers(threads, blocks):
    a, b = (f'extern "C" __global__ void __launch_bounds__({bounds}) a(int n) {{\n}}\n'
            for bounds in (threads, f"{threads}, {blocks}"))
    assert completed(a) == f"// Function: a\n{b}"


def test_room_for_fewer_blocks():
    a, b = (f'extern "C" __global__ void __launch_bounds__({{}}) {name}(int n) {{{{\n}}}}\n' for name in ("a", "a_1"))
    for before, behind in (("256, 4", "256, 2"), ("256, 3", "256, 1"), ("256, 1", "256, 1")):
        assert with_room(a.format(before) + b.format(before), {"a"}) == a.format(behind) + b.format(before)


@pytest.mark.parametrize(("dtype", "function"), [("int32", "__popc("), ("uint32", "__popc("), ("int64", "__popcll(")])
def test_bits_are_counted(compiler, dtype, function):
    with kernel(__name__) as k:
        x, y = k.tensor((32,), dtype), k.tensor((32,), dtype)
        with T.launch_thread("threadIdx.x", 32) as i:
            T.buffer_store(y, T.popcount(x[i]), [i])
    module = tvm.IRModule({"main": k.func.with_attr("global_symbol", "main")})
    text = tvm.compile(module, find_target("cuda").tvm_target).mod.imports[0].inspect_source("")
    assert function in text and list(kernel_sources(text)) == ["main_kernel"]
    assert compiler.cubin(text, "sm_80").code
