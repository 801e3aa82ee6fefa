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
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from blockffn_mlc.errors import UserError

from .weights import ALIGNMENT

_LIBRARY = {"win32": "tvm_runtime.dll", "darwin": "libtvm_runtime.dylib"}.get(sys.platform, "libtvm_runtime.so")
_ONE_CORE_PER_THREAD = -2  # TVM's ThreadGroup::kSpecifyOneCorePerThread
_threads: int | None = None
_libraries: WeakValueDictionary[tuple[int, int], ModelLibrary] = WeakValueDictionary()


def load_runtime() -> ModuleType:
    """The ``tvm_ffi`` module, with TVM's runtime library loaded. ``import tvm`` would load the compiler."""
    tvm_ffi = _import_tvm_ffi()
    tvm_ffi.register_error("KeyboardInterrupt", KeyboardInterrupt)  # in Python that TVM calls: it stays what it is
    ctypes.CDLL(str(runtime_library()), ctypes.RTLD_GLOBAL)
    return tvm_ffi


class ModelLibrary:
    """A library that build.py wrote, loaded and kept as long as this object: ``module`` is TVM's."""

    def __init__(self, path: Path) -> None:
        self.module: Any = load_runtime().load_module(str(path), keep_module_alive=False)


def model_library(path: Path) -> ModelLibrary:
    """The library at ``path``, loaded once for all who use it at a time: the system maps the file only once, and its
    compiled code remembers the kernels of one of the modules, which then must not go before the others.
    Raises what TVM raises for a file that is no library of its."""
    status = path.stat()
    identity = status.st_dev, status.st_ino
    library = _libraries.get(identity) or ModelLibrary(path)
    return _libraries.setdefault(identity, library)


def runtime_library() -> Path:
    """TVM's runtime library. Raises UserError where it is not installed."""
    spec = importlib.util.find_spec("tvm")
    folders = [Path(p) for p in os.environ.get("TVM_LIBRARY_PATH", "").split(os.pathsep) if p]
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        folders += [package / "lib", package.parents[1] / "build" / "lib", package.parents[1] / "lib"]
    for folder in folders:
        if (folder / _LIBRARY).is_file():
            return folder / _LIBRARY
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


def pin_threads(threads: int) -> None:
    """Bind the calling thread and the ``threads - 1`` others that kernels run on for it to a core each.

    Keeps two of them from sharing a core, but also from leaving one that another process wants. Raises UserError
    where there are fewer cores than threads, or the system cannot bind.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("this system cannot bind threads to cores; leave out --pin")
    cores = [str(cpu) for cpu in _one_per_core()]
    if threads > len(cores):
        raise UserError(f"{threads} threads cannot have a core each: this process may use {len(cores)}; "
                        "lower --threads or leave out --pin")
    unbound = os.environ["TVM_BIND_THREADS"]
    os.environ["TVM_BIND_THREADS"] = "1"
    load_runtime().get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, threads, cores[:threads])
    os.environ["TVM_BIND_THREADS"] = unbound  # other threads of the process, and theirs, stay as they are
    os.sched_setaffinity(0, {int(cores[0])})  # TVM leaves the caller on all of them, its workers' included


def physical_cores() -> int:
    """Physical cores this process may run on (logical processors where the system does not tell)."""
    return len(_one_per_core())


def _one_per_core() -> list[int]:
    """The first logical processor of each physical core that this process may run on."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores: dict[str, int] = {}
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.is_file() else str(cpu), cpu)
    return list(cores.values())


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
