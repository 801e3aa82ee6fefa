"""Small kernels for tests of the OpenCL runtime: compiled by TVM, or bytes as TVM stores them, made by hand."""

import struct
from ctypes import c_void_p

import tvm
from tvm.script import tirx as T

from runtime_py.tvm_runtime import load_runtime

TARGET = {"kind": "opencl", "max_num_threads": 256}
FLOAT32, INT32, POINTER = (2, 32, 1), (0, 32, 1), (3, 64, 1)  # DLDataType: code, bits, lanes
ADD = """__kernel void add(__global float* x, float value, int n) {
  int i = get_global_id(0);
  if (i < n) x[i] += value;
}
"""


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


def module_bytes(name, source, arguments, tags=("blockIdx.x", "threadIdx.x")):
    """The bytes of a module with one kernel: TVM's serialized form."""
    def number(value):
        return struct.pack("<Q", value)

    def string(text):
        return number(len(text)) + text.encode()

    return b"".join([
        string("cl"), number(1), string(name), string(name), number(len(arguments)),
        *(struct.pack("<BBH", *argument) for argument in arguments), number(len(tags)), *map(string, tags),
        number(len(arguments)), *(struct.pack("<i", 0) for _ in arguments),
        string(f"// Function: {name}\n{source}")])


def load_kernel(device, name, source, arguments, **options):
    """A kernel as a function of addresses, numbers and launch extents, which chooses the device as host code does."""
    load, choose = map(load_runtime().get_global_func, ("ffi.Module.load_from_bytes.opencl", "__tvm_set_device"))
    kernel = load(module_bytes(name, source, arguments, **options))[name]

    def launch(*values):
        choose(*device.codes[0])
        kernel(*values)
    return launch


def load_add(device):
    """add(address, value, n, groups, items)."""
    return load_kernel(device, "add", ADD, (POINTER, FLOAT32, INT32))


def address(tensor):
    """What host code passes to kernels for a tensor."""
    return c_void_p(tensor.data_ptr())


def counter(name, *arguments):
    return load_runtime().get_global_func(f"blockffn.opencl.{name}")(*arguments)
