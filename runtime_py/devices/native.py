"""Device runtimes for TVM: C++ compiled once, at the first use, where TVM was built without (as the wheel is)."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from blockffn_mlc.errors import UserError

from ..files import CACHE_VARIABLE, cache_folder, not_private
from ..tvm_runtime import installed_version, load_runtime, runtime_library
from .program_cache import ProgramCache

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Runtime:
    """How the runtime of a kind of devices is built from the folder of its name. ``complaints``: what compiler and
    linker say -> what is missing; ``packages``: what has it."""

    kind: str
    title: str
    flags: tuple[str, ...]
    link: str
    complaints: dict[str, str]
    packages: str

    @property
    def install(self) -> str:
        return f"apt install g++ ninja-build {self.packages}"

    def sources(self) -> list[Path]:
        return sorted(path for folder in (self.kind, "shared") for path in (_FOLDER / folder).iterdir())


RUNTIMES = {runtime.kind: runtime for runtime in (
    Runtime("opencl", "OpenCL", ("-O2", "-DCL_TARGET_OPENCL_VERSION=120"), "-lOpenCL",
            {"CL/cl.h": "OpenCL's headers (CL/cl.h)", "lOpenCL": "the OpenCL loader (libOpenCL)"},
            "opencl-headers ocl-icd-opencl-dev"),
    Runtime("vulkan", "Vulkan", ("-O2",), "-lvulkan",
            {"vulkan/vulkan.h": "Vulkan's headers (vulkan/vulkan.h)", "lvulkan": "the Vulkan loader (libvulkan)"},
            "libvulkan-dev"),
)}
_COMPLAINTS = {"tvm/runtime/device_api.h": "TVM's headers"}


def load_native(kind: str) -> None:
    """Make TVM able to use devices of ``kind``, a key of RUNTIMES, unless it is already. Raises UserError naming what
    is missing."""
    runtime, tvm_ffi = RUNTIMES[kind], load_runtime()
    if tvm_ffi.get_global_func(f"device_api.{kind}", allow_missing=True) is None:
        ProgramCache(kind).register(tvm_ffi)
        try:
            tvm_ffi.load_module(str(_built(runtime)))
        except OSError as error:
            raise UserError(f"the {runtime.title} runtime cannot be loaded ({error}); install it with: "
                            f"{runtime.install}") from None


def _built(runtime: Runtime) -> Path:
    """The compiled runtime, from the cache folder or made now."""
    parts = [part for path in runtime.sources() for part in (path.name, path.read_text())]
    parts += [*runtime.flags, installed_version(), version("apache-tvm-ffi"), platform.machine(),
              str(runtime_library())]
    try:
        folder = cache_folder() / "native"
    except RuntimeError:
        raise UserError(f"the {runtime.title} runtime is compiled into a cache folder, and this user has no home "
                        f"folder; set {CACHE_VARIABLE} to a folder") from None
    library = folder / f"{runtime.kind}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
        if not library.is_file():
            with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as temporary:
                made = Path(_compile(runtime, temporary))
                made.chmod(0o700)
                os.replace(made, library)
        _check_private(library)
    except OSError as error:
        raise UserError(f"{folder}: the {runtime.title} runtime cannot be built there ({error.strerror})") from None
    return library


def _check_private(path: Path) -> None:
    """Raise UserError when somebody else may have written ``path``, whose code is about to run in this process."""
    if problem := not_private(path):
        raise UserError(f"{path}: {problem}, so the code in it is not run; remove it, or set {CACHE_VARIABLE} to a "
                        "folder of your own")


def _compile(runtime: Runtime, folder: str) -> str:
    """Compile and link in ``folder``; returns the library's path. Raises UserError."""
    compiler = os.environ.get("CXX", "c++")
    for tool, what in ((compiler, f"a C++ compiler ({compiler})"), ("ninja", "ninja")):
        if shutil.which(tool) is None:
            raise _missing(runtime, what)
    from tvm_ffi import cpp

    tvm = runtime_library().parent
    include = next((str(path) for path in (tvm.parent / "include", tvm.parents[1] / "include") if path.is_dir()), "")
    try:
        return cpp.build(runtime.kind, sources=[str(path) for path in runtime.sources() if path.suffix == ".cc"],
                         build_directory=folder, extra_cflags=runtime.flags,
                         extra_include_paths=[include] if include else [],
                         extra_ldflags=[f"-L{tvm}", "-ltvm_runtime", runtime.link])
    except RuntimeError as error:
        said = str(error)
        for complaint, what in (runtime.complaints | _COMPLAINTS).items():
            if any(complaint in line for line in said.splitlines() if "error" in line or "cannot find" in line):
                raise _missing(runtime, what) from None
        log = cache_folder() / "native" / f"{runtime.kind}-build.log"
        log.write_text(said, encoding="utf-8")
        raise UserError(f"the {runtime.title} runtime cannot be compiled; what the compiler says is in {log}") from None


def _missing(runtime: Runtime, what: str) -> UserError:
    return UserError(f"{runtime.title} devices need a small runtime that is compiled at the first use, and {what} is "
                     f"missing; install it, for example with: {runtime.install}")
