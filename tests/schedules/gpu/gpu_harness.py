"""Compiles one GPU kernel and calls it on a device of this machine, with guard regions behind its tensors."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import tvm
import tvm_ffi
from harness import call_guarded, module_of
from machine import opencl_device, vulkan_device

from schedules.tiles import GPU_TILES
from targets.tools import host_library
from targets.vulkan import export_library

EXACT = 1e-12  # NMSE of float32 arithmetic against float64
STORED = 2.0**-22  # NMSE of results that are rounded to float16
TILES = GPU_TILES["opencl"]
_ITEMS = max(tiles.items for tiles in GPU_TILES.values())
TARGETS = {kind: tvm.target.Target({"kind": kind, "max_threads_per_block": _ITEMS, "max_num_threads": _ITEMS},
                                   host={"kind": "llvm"}) for kind in ("opencl", "vulkan")}
kind = "opencl"  # of the devices that kernels run on


def by_family(cases):
    """Cases (format, ...) with the name of a row of GPU_TILES in front: all for this machine's row and for the one with
    the least memory, the first 4-bit one for that with other work-groups, since how weights are read does not depend on
    a row's numbers. "mali" has more memory than "generic", which these kernels would not use."""
    other = next(case for case in cases if case[0] == "q4f32_1")
    return [(family, *case) for family in ("opencl", "generic") for case in cases] + [("adreno", *other)]


def token_counts(family):
    """One for every variant of every kernel; for this machine's row also the sizes around their limits."""
    return (1, 2, 5, 8, 9, 17, 33, 64, 130) if family == "opencl" else (1, 4, 8, 64, 130)


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


def launches() -> int:
    """Kernels launched so far by this process."""
    return tvm_ffi.get_global_func(f"blockffn.{kind}.launches")()


def run(func, *args):
    """As ``harness.run``, on a device; some kernel was launched."""
    (function, device), before = compiled(func, kind), launches()
    written = call_guarded(function, device, args)
    assert launches() > before, "no kernel was launched"
    return written
