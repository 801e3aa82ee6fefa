"""OpenCL for TVM: C++ that is compiled once, at the first use, where TVM was built without (as the wheel is)."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from blockffn_mlc.errors import UserError

from ..files import CACHE_VARIABLE, cache_folder
from ..tvm_runtime import installed_version, load_runtime, runtime_library
from .program_cache import register_program_cache

_SOURCES = Path(__file__).parent / "opencl"
_FLAGS = ("-O2", "-DCL_TARGET_OPENCL_VERSION=120")
_INSTALL = "apt install g++ ninja-build opencl-headers ocl-icd-opencl-dev"
# What compiler and linker say -> what is missing.
_COMPLAINTS = {"CL/cl.h": "OpenCL's headers (CL/cl.h)", "lOpenCL": "the OpenCL loader (libOpenCL)",
               "tvm/runtime/device_api.h": "TVM's headers"}


def load_opencl() -> None:
    """Make TVM able to use OpenCL devices, unless it is already. Raises UserError naming what is missing."""
    tvm_ffi = load_runtime()
    if tvm_ffi.get_global_func("device_api.opencl", allow_missing=True) is None:
        register_program_cache(tvm_ffi)
        try:
            tvm_ffi.load_module(str(_built()))
        except OSError as error:
            raise UserError(f"the OpenCL runtime cannot be loaded ({error}); install it with: {_INSTALL}") from None


def _built() -> Path:
    """The compiled runtime, from the cache folder or made now."""
    sources = sorted(_SOURCES.iterdir())
    parts = [part for path in sources for part in (path.name, path.read_text())]
    parts += [*_FLAGS, installed_version(), version("apache-tvm-ffi"), platform.machine(), str(runtime_library())]
    try:
        folder = cache_folder() / "native"
    except RuntimeError:
        raise UserError("the OpenCL runtime is compiled into a cache folder, and this user has no home folder; "
                        f"set {CACHE_VARIABLE} to a folder") from None
    library = folder / f"opencl-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.so"
    if not library.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as temporary:
                os.replace(_compile([str(path) for path in sources if path.suffix == ".cc"], temporary), library)
        except OSError as error:
            raise UserError(f"{folder}: the OpenCL runtime cannot be built there ({error.strerror})") from None
    return library


def _compile(sources: list[str], folder: str) -> str:
    """Compile and link in ``folder``; returns the library's path. Raises UserError."""
    compiler = os.environ.get("CXX", "c++")
    for tool, what in ((compiler, f"a C++ compiler ({compiler})"), ("ninja", "ninja")):
        if shutil.which(tool) is None:
            raise _missing(what)
    from tvm_ffi import cpp

    tvm = runtime_library().parent
    include = next((str(path) for path in (tvm.parent / "include", tvm.parents[1] / "include") if path.is_dir()), "")
    try:
        return cpp.build("opencl", sources=sources, build_directory=folder, extra_cflags=_FLAGS,
                         extra_include_paths=[include] if include else [],
                         extra_ldflags=[f"-L{tvm}", "-ltvm_runtime", "-lOpenCL"])
    except RuntimeError as error:
        said = str(error)
        for complaint, what in _COMPLAINTS.items():
            if any(complaint in line for line in said.splitlines() if "error" in line or "cannot find" in line):
                raise _missing(what) from None
        log = cache_folder() / "native" / "opencl-build.log"
        log.write_text(said, encoding="utf-8")
        raise UserError(f"the OpenCL runtime cannot be compiled; what the compiler says is in {log}") from None


def _missing(what: str) -> UserError:
    return UserError(f"OpenCL devices need a small runtime that is compiled at the first use, and {what} is missing; "
                     f"install it, for example with: {_INSTALL}")
