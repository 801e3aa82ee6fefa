"""A small kernel that TVM compiles for OpenCL."""

import tvm
from tvm.script import tirx as T

TARGET = {"kind": "opencl", "max_num_threads": 256}


@T.prim_func(s_tir=True)
def scale(x: T.handle, factor: T.float32, y: T.handle):
    """y = factor * x, n values."""
    n = T.int32()
    source = T.match_buffer(x, (n,), "float32")
    result = T.match_buffer(y, (n,), "float32")
    for block in T.thread_binding((n + 63) // 64, thread="blockIdx.x"):
        for lane in T.thread_binding(64, thread="threadIdx.x"):
            if block * 64 + lane < n:
                result[block * 64 + lane] = source[block * 64 + lane] * factor


def compile_scale(path):
    """A library with function ``main``: the one above. TVM's compiler needs no driver."""
    target = tvm.target.Target(TARGET, host={"kind": "llvm"})
    tvm.compile(tvm.IRModule({"main": scale.with_attr("global_symbol", "main")}), target).export_library(str(path))
    return path
