"""A small kernel that every device runtime has: ``add(address, value, n, groups, 64)`` adds to the first n floats."""

import opencl_kernels
import vulkan_kernels

ADD = {"opencl": opencl_kernels.ADD, "vulkan": vulkan_kernels.ADD}
ARGUMENTS = vulkan_kernels.ADD_ARGUMENTS


def load_add(device, source=None):
    """The kernel as a function; ``source``: a form of ADD for the device's kind."""
    source = source or ADD[device.kind]
    if device.kind == "opencl":
        return opencl_kernels.load_kernel(device, "add", source, ARGUMENTS)
    return vulkan_kernels.load_kernel("add", source, ARGUMENTS)
