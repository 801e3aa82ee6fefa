"""A device to test on, where there is one."""

import pytest

from runtime_py.devices import find_device, list_devices


@pytest.fixture(scope="session")
def device():
    """The first OpenCL device."""
    found = next(entry for entry in list_devices() if entry["device"].startswith("opencl"))
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    return find_device("opencl")
