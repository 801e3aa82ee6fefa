"""A small kernel for tests of the OpenCL runtime: bytes as TVM stores them, made by hand, without its compiler."""

import struct
from ctypes import c_void_p
from functools import partial

import counters

from runtime_py.tvm_runtime import load_runtime

FLOAT32, INT32, POINTER = (2, 32, 1), (0, 32, 1), (3, 64, 1)  # DLDataType: code, bits, lanes
ADD = """__kernel void add(__global float* x, float value, int n) {
  int i = get_global_id(0);
  if (i < n) x[i] += value;
}
"""


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


counter = partial(counters.counter, "opencl")
