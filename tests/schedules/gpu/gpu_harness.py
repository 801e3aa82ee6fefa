"""Compiles one GPU kernel and calls it on this machine's OpenCL device, with guard regions behind its tensors."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from harness import GUARD, call_guarded, module_of

from blockffn_mlc.errors import UserError
from runtime_py.devices import find_device
from schedules.tiles import GPU_TILES

EXACT = 1e-12  # NMSE of float32 arithmetic against float64
TILES = GPU_TILES["opencl"]
TARGET = tvm.target.Target({"kind": "opencl", "max_threads_per_block": TILES.items, "max_num_threads": TILES.items},
                           host={"kind": "llvm"})


@cache
def device():
    """The device, the same for all tests. Skips where there is none."""
    try:
        return find_device("opencl")
    except UserError as error:
        pytest.skip(f"no OpenCL device: {error}")


@cache
def has_half():
    """Whether the device computes with float16."""
    from runtime_py.devices import list_devices

    device()
    return any(entry.get("fp16") for entry in list_devices() if entry["device"] == "opencl:0")


def skip_unless_it_computes(weight_format: str) -> None:
    if weight_format in ("float16", "q4f16_1") and not has_half():
        pytest.skip("this machine lacks an OpenCL device with cl_khr_fp16")


@cache
def compiled(func):
    executable = tvm.compile(module_of(func), TARGET)
    with tempfile.TemporaryDirectory(prefix="blockffn-test-") as folder:
        path = Path(folder) / "kernel.so"
        executable.export_library(str(path))
        return tvm.runtime.load_module(str(path))["main"]


class Guarded:
    """A tensor with poisoned memory behind it: floats are NaN, integers huge."""

    def __init__(self, shape, dtype) -> None:
        dtype = np.dtype(dtype)
        self._poison = 0xFF if dtype.kind == "f" else 0x5A
        self._shape, self._dtype = tuple(shape), dtype
        self._nbytes = int(np.prod(shape)) * dtype.itemsize
        self.memory = np.full(self._nbytes + GUARD, self._poison, np.uint8)
        self.array = self.memory[:self._nbytes].view(dtype).reshape(self._shape)

    def tensor(self):
        """The tensor as the kernel sees it."""
        self._whole = device().tensor(self.memory)
        return tvm_ffi.get_global_func("runtime.TVMTensorCreateView")(
            self._whole, tvm_ffi.Shape(self._shape), tvm_ffi.dtype(self._dtype.name), 0)

    def check_guards(self) -> None:
        """Look at what the kernel left."""
        self.memory = device().host(self._whole)
        self.array = self.memory[:self._nbytes].view(self._dtype).reshape(self._shape)
        assert (self.memory[self._nbytes:] == self._poison).all(), "written behind the tensor"

    def untouched(self) -> np.ndarray:
        """bool: elements that still hold the poison."""
        raw = self.memory[:self._nbytes].reshape(*self._shape, self._dtype.itemsize)
        return (raw == self._poison).all(-1)


def launches() -> int:
    """Kernels launched so far by this process."""
    return tvm_ffi.get_global_func("blockffn.opencl.launches")()


def run(func, *args):
    """As ``harness.run``, on the device; some kernel was launched."""
    device()
    function, before = compiled(func), launches()
    written = call_guarded(function, Guarded, args)
    assert launches() > before, "no kernel was launched"
    return written
