"""Device runtimes that TVM itself brings: a library beside its own, or part of it."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from blockffn_mlc.errors import UserError

from ..tvm_runtime import load_runtime, runtime_library


@dataclass(frozen=True)
class Provided:
    """Devices of ``kind``. ``needs``: what their runtime cannot be without; ``driver``: what a device needs."""

    kind: str
    title: str
    needs: str
    driver: str


PROVIDED = {provided.kind: provided for provided in (
    Provided("cuda", "CUDA", "NVIDIA's driver (libcuda.so.1) and CUDA's runtime (libcudart.so.13, for example from: "
             "pip install 'nvidia-cuda-runtime~=13.0.0')", "NVIDIA's"),
    Provided("metal", "Metal", "macOS and TVM's wheel for it", "Apple's"),
)}


def load_provided(kind: str) -> None:
    """Make TVM able to use devices of ``kind``, a key of PROVIDED, unless it is already. Raises UserError naming what
    is missing."""
    provided, tvm_ffi = PROVIDED[kind], load_runtime()
    if tvm_ffi.get_global_func(f"device_api.{kind}", allow_missing=True) is not None:
        return
    library = runtime_library().with_name(runtime_library().name.replace("tvm_runtime", f"tvm_runtime_{kind}"))
    if not library.is_file():
        raise UserError(f"the installed TVM has no {provided.title} runtime; it takes {provided.needs}")
    try:
        if kind == "cuda":
            _load_cudart()
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UserError(f"TVM's {provided.title} runtime cannot be loaded ({error}); it takes {provided.needs}"
                        ) from None


def _load_cudart() -> None:
    """CUDA's runtime from NVIDIA's package, where that is installed: the system would not look for it there."""
    package = importlib.util.find_spec("nvidia") if sys.platform == "linux" else None
    for base in package.submodule_search_locations or () if package else ():
        for library in sorted(Path(base).glob("cu13/lib/libcudart.so.*")):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
