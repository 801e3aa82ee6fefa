"""A small kernel that every device runtime has: ``add(address, value, n, groups, 64)`` adds to the first n floats. And
memory and copies for which nobody waits, as for ``Device.zeros``."""

import opencl_kernels
import vulkan_kernels

from runtime_py.tvm_runtime import load_runtime

ADD = {"opencl": opencl_kernels.ADD, "vulkan": vulkan_kernels.ADD}
ARGUMENTS = vulkan_kernels.ADD_ARGUMENTS


def load_add(device, source=None):
    """The kernel as a function; ``source``: a form of ADD for the device's kind."""
    source = source or ADD[device.kind]
    if device.kind == "opencl":
        return opencl_kernels.load_kernel(device, "add", source, ARGUMENTS)
    return vulkan_kernels.load_kernel("add", source, ARGUMENTS)


def empty(device, floats):
    """A tensor that nothing was written to."""
    ffi = load_runtime()
    allocate = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return allocate(ffi.Shape((floats,)), ffi.dtype("float32"), ffi.device(device.kind, device.index), None)


def first(tensor, floats):
    """The beginning of a tensor."""
    view = load_runtime().get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, load_runtime().Shape((floats,)), tensor.dtype, 0)


def copy(source, target):
    """Between tensors of devices, in order with launches."""
    load_runtime().get_global_func("runtime.TVMTensorCopyFromTo")(source, target)
