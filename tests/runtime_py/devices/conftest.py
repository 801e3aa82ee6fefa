"""A device to test on, where there is one."""

import pytest
from machine import opencl_device


@pytest.fixture(scope="session")
def device(request):
    """The device for what is computed in float32; with parameter True the one for float16."""
    return opencl_device(half=getattr(request, "param", False))
