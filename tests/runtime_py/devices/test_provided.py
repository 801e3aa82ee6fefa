"""Device runtimes that TVM brings itself."""

import pytest

from blockffn_mlc.errors import UserError
from runtime_py.devices import find_device, list_devices, provided
from runtime_py.tvm_runtime import load_runtime


@pytest.fixture(params=["cuda", "metal"])
def kind(request):
    """A kind that this process has no runtime for."""
    if load_runtime().get_global_func(f"device_api.{request.param}", allow_missing=True) is not None:
        pytest.skip(f"this machine lacks nothing that {request.param} takes")
    return request.param


def test_a_tvm_without_the_runtime_is_said(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(provided, "runtime_library", lambda: tmp_path / "libtvm_runtime.so")
    with pytest.raises(UserError, match=f"the installed TVM has no {provided.PROVIDED[kind].title} runtime; it takes"):
        find_device(kind)
    (entry,) = [entry for entry in list_devices() if entry["device"].startswith(kind)]
    assert entry["device"] == kind and "the installed TVM has no" in entry["unavailable"]


def test_a_runtime_that_cannot_be_loaded_is_said(kind, monkeypatch, tmp_path):
    (tmp_path / f"libtvm_runtime_{kind}.so").write_bytes(b"no library")
    monkeypatch.setattr(provided, "runtime_library", lambda: tmp_path / "libtvm_runtime.so")
    with pytest.raises(UserError, match="runtime cannot be loaded .*; it takes"):
        find_device(f"{kind}:0")
