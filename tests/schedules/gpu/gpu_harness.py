"""Compiles one GPU kernel and calls it on a device of this machine, with guard regions behind its tensors."""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from harness import GUARD, call_guarded, module_of
from machine import opencl_device, vulkan_device

from schedules.tiles import GPU_TILES
from targets.tools import host_library
from targets.vulkan import export_library

EXACT = 1e-12  # NMSE of float32 arithmetic against float64
TILES = GPU_TILES["opencl"]
TARGETS = {kind: tvm.target.Target({"kind": kind, "max_threads_per_block": TILES.items, "max_num_threads": TILES.items},
                                   host={"kind": "llvm"}) for kind in ("opencl", "vulkan")}
kind = "opencl"  # of the devices that kernels run on


@cache
def compiled(func, kind):
    """A kernel, and the device that it runs on: for OpenCL one with float16 only where its text asks for that. Skips
    where there is no such device."""
    executable = tvm.compile(module_of(func), TARGETS[kind])
    with tempfile.TemporaryDirectory(prefix="blockffn-test-") as folder:
        path = str(Path(folder) / "kernel.so")
        if kind == "vulkan":
            device = vulkan_device()
            export_library(executable, path, host_library().link)
        else:
            device = opencl_device(half="cl_khr_fp16" in executable.mod.imports[0].inspect_source(""))
            executable.export_library(path)
        return tvm.runtime.load_module(path)["main"], device


class Guarded:
    """A tensor with poisoned memory behind it: floats are NaN, integers huge."""

    def __init__(self, device, shape, dtype) -> None:
        self._device = device
        dtype = np.dtype(dtype)
        self._poison = 0xFF if dtype.kind == "f" else 0x5A
        self._shape, self._dtype = tuple(shape), dtype
        self._nbytes = int(np.prod(shape)) * dtype.itemsize
        self.memory = np.full(self._nbytes + GUARD, self._poison, np.uint8)
        self.array = self.memory[:self._nbytes].view(dtype).reshape(self._shape)

    def tensor(self):
        """The tensor as the kernel sees it."""
        self._whole = self._device.tensor(self.memory)
        return tvm_ffi.get_global_func("runtime.TVMTensorCreateView")(
            self._whole, tvm_ffi.Shape(self._shape), tvm_ffi.dtype(self._dtype.name), 0)

    def check_guards(self) -> None:
        """Look at what the kernel left."""
        self.memory = self._device.host(self._whole)
        self.array = self.memory[:self._nbytes].view(self._dtype).reshape(self._shape)
        assert (self.memory[self._nbytes:] == self._poison).all(), "written behind the tensor"

    def untouched(self) -> np.ndarray:
        """bool: elements that still hold the poison."""
        raw = self.memory[:self._nbytes].reshape(*self._shape, self._dtype.itemsize)
        return (raw == self._poison).all(-1)


def launches() -> int:
    """Kernels launched so far by this process."""
    return tvm_ffi.get_global_func(f"blockffn.{kind}.launches")()


def run(func, *args):
    """As ``harness.run``, on a device; some kernel was launched."""
    (function, device), before = compiled(func, kind), launches()
    written = call_guarded(function, partial(Guarded, device), args)
    assert launches() > before, "no kernel was launched"
    return written
