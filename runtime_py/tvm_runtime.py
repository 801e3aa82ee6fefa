"""TVM's runtime half: loaded alone, without the compiler and without torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from blockffn_mlc.errors import UserError

from .weights import ALIGNMENT

_LIBRARY = {"win32": "tvm_runtime.dll", "darwin": "libtvm_runtime.dylib"}.get(sys.platform, "libtvm_runtime.so")
_threads: int | None = None


def load_runtime() -> ModuleType:
    """The ``tvm_ffi`` module, with TVM's runtime library loaded. ``import tvm`` would load the compiler."""
    tvm_ffi = _import_tvm_ffi()
    spec = importlib.util.find_spec("tvm")
    folders = [Path(p) for p in os.environ.get("TVM_LIBRARY_PATH", "").split(os.pathsep) if p]
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        folders += [package / "lib", package.parents[1] / "build" / "lib", package.parents[1] / "lib"]
    for folder in folders:
        if (folder / _LIBRARY).is_file():
            ctypes.CDLL(str(folder / _LIBRARY), ctypes.RTLD_GLOBAL)
            return tvm_ffi
    raise UserError(f"{_LIBRARY} was not found; install TVM's runtime with: pip install 'apache-tvm~=0.27.0'")


def installed_version() -> str:
    """Version of the TVM that this process would load."""
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        import tvm  # a build of the user's own, without package metadata
        return tvm.__version__


def set_threads(threads: int | None) -> int:
    """Fix how many threads kernels use; TVM reads it once, at the first launch of the process.

    None: what ``TVM_NUM_THREADS`` says, else one per physical core (TVM's own default halves the cores
    of machines without hyper-threading). Returns the number. Raises UserError for a second, different number.
    """
    global _threads
    if threads is not None and threads < 1:
        raise UserError(f"threads: expected a positive integer, found {threads}")
    if _threads is None:
        wanted = threads or _int(os.environ.get("TVM_NUM_THREADS")) or physical_cores()
        os.environ["TVM_NUM_THREADS"] = str(wanted)
        # Bound workers share a core with the unbound main thread on small machines: halved speed.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        _threads = wanted
    elif threads not in (None, _threads):
        raise UserError(f"threads: this process already runs kernels on {_threads} thread(s); "
                        f"start a new one to use {threads}")
    return _threads


def physical_cores() -> int:
    """Physical cores this process may run on (logical processors where the system does not tell)."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else str(cpu))
    return len(cores)


def aligned_zeros(shape: tuple[int, ...], dtype: str | np.dtype) -> np.ndarray:
    """A zeroed array whose memory starts at a multiple of 64 bytes, as compiled kernels expect."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start:start + nbytes].view(dtype).reshape(shape)


def _import_tvm_ffi() -> ModuleType:
    """tvm_ffi imports torch whenever it is installed, a second and 200 MB that nothing here uses: hide it meanwhile."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes ``import torch`` raise ImportError
    try:
        import tvm_ffi
    except ImportError:
        raise UserError("TVM's runtime is not installed; install it with: pip install 'apache-tvm~=0.27.0'") from None
    finally:
        if hide:
            del sys.modules["torch"]
    return tvm_ffi


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and int(text) > 0 else None
