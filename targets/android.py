"""The Android family: OpenCL on phones, host code for 64-bit ARM."""

from __future__ import annotations

from pathlib import Path

import tvm

import schedules.gpu
from blockffn_mlc.target import Target
from schedules.tiles import GPU_TILES

from .limits import Limits
from .opencl import opencl
from .tools import android_library, system_library

# Adreno and Mali have 32 KB of threadgroup memory, others 16 KB at least. Adreno and Mali start groups of 256 unless a
# kernel takes very many registers. No largest buffer is below 128 MB (what OpenCL asks of a device), most are 256 MB or
# more. The compilers in the drivers run out of memory on long unrolled bodies.
LIMITS = {
    "adreno": Limits(work_group=256, threadgroup_bytes=32768, buffer_bytes=256 << 20, statements=500,
                     source_bytes=1 << 16),
    "mali": Limits(work_group=256, threadgroup_bytes=32768, buffer_bytes=256 << 20, statements=500,
                   source_bytes=1 << 16),
    "generic": Limits(work_group=128, threadgroup_bytes=16384, buffer_bytes=128 << 20, statements=500,
                      source_bytes=1 << 16),
}
HOST = {"kind": "llvm", "mtriple": "aarch64-linux-android", "mattr": ["+neon"]}
HOST_TEXT = "aarch64 generic, neon"
PREFILL_CHUNK = 128  # MLC's for phones: a pass's buffers stay small
_FOLDER = Path(__file__).parent
FILES = {"README.md": (_FOLDER / "android.md").read_text(encoding="utf-8"),
         "run_on_phone.py": (_FOLDER / "run_on_phone.py").read_text(encoding="utf-8")}


def android_target(name: str, family: str) -> Target:
    """Target ``name`` for GPUs of ``family``, a key of LIMITS and of GPU_TILES."""
    limits = LIMITS[family]
    return Target(name, HOST_TEXT, opencl(limits, tvm.target.Target(HOST)), schedules.gpu,
                  GPU_TILES[family], (android_library(), system_library()), limits, PREFILL_CHUNK,
                  FILES, mlc_device="android")
