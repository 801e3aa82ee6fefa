"""The targets "vulkan" and "vulkan:android"."""

from __future__ import annotations

from dataclasses import replace

import tvm

import schedules.gpu
from blockffn_mlc.target import Form, Target
from schedules.tiles import GPU_TILES

from ..android import HOST, HOST_TEXT, PREFILL_CHUNK
from ..cpu import plain_host
from ..limits import Limits
from ..tools import android_library, host_library, system_library
from .module import export_library
from .spirv import GLSLC

# What every device with Vulkan 1.1 has: maxComputeWorkGroupInvocations, maxComputeSharedMemorySize,
# maxStorageBufferRange (specification, table "Required Limits"). Statements and source are OpenCL's of phones.
LIMITS = Limits(work_group=128, threadgroup_bytes=16384, buffer_bytes=1 << 27, statements=500, source_bytes=1 << 17)


def vulkan_target() -> Target:
    """The target ``vulkan``: kernels for any device with Vulkan 1.1, host code for every processor of this
    architecture."""
    host, text = plain_host()
    return _target("vulkan", text, host, host_library())


def vulkan_android_target() -> Target:
    """The target ``vulkan:android``: the same kernels, host code for 64-bit ARM."""
    target = _target("vulkan:android", HOST_TEXT, tvm.target.Target(HOST), android_library(), system_library())
    return replace(target, prefill_chunk=PREFILL_CHUNK)


def _target(name: str, text: str, host: tvm.target.Target, *forms: Form) -> Target:
    tvm_target = tvm.target.Target({
        "kind": "vulkan", "max_num_threads": LIMITS.work_group, "max_threads_per_block": LIMITS.work_group,
        "max_shared_memory_per_block": LIMITS.threadgroup_bytes, "supports_float16": True, "supports_int8": True,
        "supports_int16": True, "supports_int64": True, "supports_8bit_buffer": True, "supports_16bit_buffer": True,
    }, host=host)
    return Target(name, text, tvm_target, schedules.gpu, GPU_TILES["generic"], tuple(map(_with_shaders, forms)), LIMITS,
                  export=export_library)


def _with_shaders(form: Form) -> Form:
    """A form whose kernels glslc compiles."""
    def check() -> None:
        form.check()
        GLSLC.check()

    return replace(form, check=check)
