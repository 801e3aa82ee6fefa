"""The targets "vulkan" and "vulkan:android"."""

from __future__ import annotations

import tvm

import schedules.gpu
from blockffn_mlc.target import Target
from schedules.tiles import GPU_TILES

from ..android import HOST, HOST_TEXT, PREFILL_CHUNK
from ..cpu import plain_host
from ..limits import Limits
from ..tools import android_library, host_library, system_library
from .module import export_library

# What every device with Vulkan 1.1 has: maxComputeWorkGroupInvocations, maxComputeSharedMemorySize,
# maxStorageBufferRange (specification, table "Required Limits"). Statements and source are OpenCL's of phones.
LIMITS = Limits(work_group=128, threadgroup_bytes=16384, buffer_bytes=1 << 27, statements=500, source_bytes=1 << 17)


def vulkan_target() -> Target:
    """The target ``vulkan``: kernels for any device with Vulkan 1.1, host code for every processor of this
    architecture."""
    host, text = plain_host()
    return Target("vulkan", text, _vulkan(LIMITS, host), schedules.gpu, GPU_TILES["generic"], (host_library(),), LIMITS,
                  export=export_library)


def vulkan_android_target() -> Target:
    """The target ``vulkan:android``: the same kernels, host code for 64-bit ARM."""
    return Target("vulkan:android", HOST_TEXT, _vulkan(LIMITS, tvm.target.Target(HOST)), schedules.gpu,
                  GPU_TILES["generic"], (android_library(), system_library()), LIMITS, PREFILL_CHUNK,
                  export=export_library)


def _vulkan(limits: Limits, host: tvm.target.Target) -> tvm.target.Target:
    return tvm.target.Target({"kind": "vulkan", "max_num_threads": limits.work_group,
                              "max_threads_per_block": limits.work_group,
                              "max_shared_memory_per_block": limits.threadgroup_bytes,
                              "supports_float16": True, "supports_int8": True, "supports_int16": True,
                              "supports_int64": True, "supports_8bit_buffer": True, "supports_16bit_buffer": True},
                             host=host)
