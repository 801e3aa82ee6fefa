"""Kernels for CUDA and Metal, compiled for the processor, and the devices that run them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import tvm
import tvm_ffi
from compiling import compile_kernels
from gpu_kernels import Built
from tvm_ffi import cpp

from runtime_py.devices import Device, find_device
from runtime_py.tvm_runtime import runtime_library
from targets import find_target
from targets.tools import host_library

_folder = tempfile.TemporaryDirectory(prefix="blockffn-test-")


@cache
def shim_device(kind: str) -> Device:
    """Device ``kind``, "cuda" or "metal", which is the processor."""
    _load_shims()
    return find_device(kind)


def library(kind: str, kernels: Iterable[Built]) -> SimpleNamespace:
    """The kernels as an engine has them, on device ``kind``, with a method ``kernel(name)``."""
    device, path = shim_device(kind), Path(tempfile.mkdtemp(dir=_folder.name)) / "kernels.so"
    target = find_target(kind).tvm_target
    module = tvm.IRModule({built.name: built.func.with_attr("global_symbol", built.name) for built in kernels})
    executable = tvm.compile(module, target.with_host(tvm.target.Target({"kind": "llvm"})))
    executable.export_library(str(path), fcompile=host_library().link)
    loaded = tvm.runtime.load_module(str(path))
    return SimpleNamespace(device=device, library=SimpleNamespace(kernel=loaded.__getitem__))


@cache
def _load_shims() -> None:
    """Register the devices with TVM. In tests of these alone: the process cannot use real ones any more."""
    lib = runtime_library().parent
    made = cpp.build("shims", sources=[str(Path(__file__).with_name("device.cc"))], build_directory=_folder.name,
                     extra_cflags=["-O1"], extra_include_paths=[str(lib.parent / "include")],
                     extra_ldflags=[f"-L{lib}", "-ltvm_runtime"])
    tvm_ffi.load_module(made)
    tvm_ffi.register_global_func("blockffn.shims.compile", _compile, override=True)


def _compile(kind: str, source: str) -> str:
    path = Path(tempfile.mkdtemp(dir=_folder.name)) / "kernels.so"
    compile_kernels(str(kind), str(source), path)
    return str(path)
