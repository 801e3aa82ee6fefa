"""Devices to test on, where there are some."""

import pytest
from machine import opencl_device, vulkan_device


@pytest.fixture(scope="session")
def device(request):
    """The OpenCL device for what is computed in float32; with parameter True the one for float16."""
    return opencl_device(half=getattr(request, "param", False))


@pytest.fixture(scope="module", params=[opencl_device, vulkan_device], ids=["opencl", "vulkan"])
def each_device(request):
    """A device of every kind, one after the other: what is computed in float32."""
    return request.param()


@pytest.fixture(scope="session")
def vulkan():
    """The first Vulkan device."""
    return vulkan_device()
