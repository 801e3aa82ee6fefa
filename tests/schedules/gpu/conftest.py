"""Kernels run on devices of every kind."""

from types import SimpleNamespace

import gpu_harness
import pytest

FEW_TOKENS = (1, 3, 8, 33)  # one for each form of the matrix kernels, which drivers for Vulkan take long to compile


def pytest_generate_tests(metafunc):
    kinds = gpu_harness.TARGETS if hasattr(metafunc.module, "run") else ("opencl",)
    metafunc.parametrize("kind", kinds, indirect=True)


def pytest_collection_modifyitems(items):
    """Of the rows of GPU_TILES, targets for Vulkan use one."""
    def needed(params):
        return params.get("kind") != "vulkan" or params.get("family", "generic") == "generic"

    items[:] = [item for item in items if needed(getattr(item, "callspec", SimpleNamespace(params={})).params)]


@pytest.fixture(autouse=True)
def kind(request, monkeypatch):
    """What kind of device the test's kernels run on."""
    monkeypatch.setattr(gpu_harness, "kind", request.param)
    if request.param == "vulkan" and len(getattr(request.module, "TOKENS", ())) > len(FEW_TOKENS):
        monkeypatch.setattr(request.module, "TOKENS", FEW_TOKENS)
