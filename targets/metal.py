"""The Metal family: Macs with Apple's processors, and iPhones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx

import schedules.gpu
from blockffn_mlc.target import Form, Target
from schedules.tiles import GPU_TILES

from .limits import Limits
from .packing import keep_source
from .tools import mac_library, system_library

# Metal feature set tables: 32 KB of threadgroup memory and 1024 threads on every GPU since the A11, of which a kernel
# with many registers gets fewer; 31 buffers, one of them for numbers, of at least 256 MB (1 GB on Macs).
LIMITS = {
    "metal": Limits(work_group=256, threadgroup_bytes=32768, buffer_bytes=1 << 30, statements=1000,
                    source_bytes=1 << 17, buffers=30),
    "iphone": Limits(work_group=256, threadgroup_bytes=32768, buffer_bytes=256 << 20, statements=500,
                     source_bytes=1 << 16, buffers=30),
}
_TRIPLES = {"metal": "arm64-apple-macos13.0", "iphone": "arm64-apple-ios16.0"}
_PREFILL_CHUNK = 128  # MLC's for phones: a pass's buffers stay small
_README = (Path(__file__).parent / "iphone.md").read_text(encoding="utf-8")


def metal_target() -> Target:
    """The target ``metal``: Macs; host code for every processor of Apple's."""
    return _target("metal", mac_library(), system_library())


def iphone_target() -> Target:
    """The target ``iphone``: objects to link an app with."""
    return _target("iphone", system_library(), prefill_chunk=_PREFILL_CHUNK, files={"README.md": _README},
                   mlc_device="iphone")


def _target(name: str, *forms: Form, **options: object) -> Target:
    limits = LIMITS[name]
    host = tvm.target.Target({"kind": "llvm", "mtriple": _TRIPLES[name], "mattr": ["+neon"]})
    tvm_target = tvm.target.Target({"kind": "metal", "max_num_threads": limits.work_group,
                                    "max_threads_per_block": limits.work_group,
                                    "max_shared_memory_per_block": limits.threadgroup_bytes}, host=host)
    return Target(name, "arm64 generic, neon", tvm_target, schedules.gpu, GPU_TILES[name], forms, limits, **options)


def _exact_numbers(module: tvm.IRModule) -> tvm.IRModule:
    """The module with its float32 numbers by their bits where the seven digits that TVM prints for Metal are another
    number."""
    def exact(number: tirx.FloatImm) -> Any:
        value = np.float32(number.value)
        if str(number.ty.dtype) != "float32" or np.float32(f"{value:e}") == value:
            return number
        return tirx.reinterpret("float32", tirx.const(int(value.view(np.uint32)), "uint32"))

    return tvm.IRModule({var: func.with_body(tvm_ffi.structural_map(func.body, (tirx.FloatImm, exact)))
                         for var, func in module.functions.items()}, attrs=module.attrs)


keep_source("metal", _exact_numbers)
