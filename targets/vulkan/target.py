"""The targets "vulkan" and "vulkan:android"."""

from __future__ import annotations

from dataclasses import replace

import tvm

import schedules.gpu
from blockffn_mlc.errors import UserError
from blockffn_mlc.target import Form, Target
from runtime_py.devices import list_devices
from schedules.tiles import GPU_TILES

from ..android import FILES, HOST, HOST_TEXT, PREFILL_CHUNK
from ..cpu import plain_host
from ..limits import Limits
from ..tools import android_library, host_library, system_library
from .module import export_library
from .spirv import GLSLC

# What every device with Vulkan 1.1 has: maxComputeWorkGroupInvocations, maxComputeSharedMemorySize,
# maxStorageBufferRange, maxComputeWorkGroupCount (specification, table "Required Limits"). Not so the buffers of a
# kernel: of maxPerStageDescriptorStorageBuffers 4 are promised, and experts take 8, trees over MLC's cache 10
# (docs/vulkan.md says which devices have them). Statements and source are OpenCL's of phones.
LIMITS = Limits(work_group=128, threadgroup_bytes=16384, buffer_bytes=1 << 27, statements=500, source_bytes=1 << 17,
                buffers=10, groups=65535)
_MOST_BYTES = (1 << 31) - 1  # of a buffer: elements are counted in int32
_PREFILL_CHUNK = 256  # the logits of that many tokens fit into a buffer for vocabularies of up to 131,072


def vulkan_target(probe: bool = False) -> Target:
    """The target ``vulkan``: kernels for any device with Vulkan 1.1, host code for every processor of this
    architecture. ``probe``: buffers and grids as this machine's first device allows. Raises UserError if it has
    none."""
    host, text = plain_host()
    limits = _probed() if probe else LIMITS
    return replace(_target("vulkan", text, host, limits, host_library()), prefill_chunk=_PREFILL_CHUNK)


def vulkan_android_target() -> Target:
    """The target ``vulkan:android``: the same kernels, host code for 64-bit ARM."""
    target = _target("vulkan:android", HOST_TEXT, tvm.target.Target(HOST), LIMITS, android_library(), system_library())
    return replace(target, prefill_chunk=PREFILL_CHUNK, files=FILES, mlc_device="android")


def _probed() -> Limits:
    """With the first device's limits of buffers and grids. The rest stays: no kernel has use for larger work-groups,
    and an artifact should ask a device for no more than its kernels do."""
    found = next(entry for entry in list_devices() if entry["device"].startswith("vulkan"))
    if "unavailable" in found:
        raise UserError(f"--device-limits probe: {found['unavailable']}")
    if "max_allocation_bytes" not in found:  # TVM's own runtime
        raise UserError(f"--device-limits probe: TVM's own Vulkan runtime does not tell the limits of {found['name']}; "
                        "leave the option out")
    return replace(LIMITS, buffer_bytes=min(found["max_allocation_bytes"], _MOST_BYTES), buffers=found["max_buffers"],
                   groups=found["max_groups"])


def _target(name: str, text: str, host: tvm.target.Target, limits: Limits, *forms: Form) -> Target:
    tvm_target = tvm.target.Target({
        "kind": "vulkan", "max_num_threads": limits.work_group, "max_threads_per_block": limits.work_group,
        "max_shared_memory_per_block": limits.threadgroup_bytes, "supports_float16": True, "supports_int8": True,
        "supports_int16": True, "supports_int64": True, "supports_8bit_buffer": True, "supports_16bit_buffer": True,
    }, host=host)
    return Target(name, text, tvm_target, schedules.gpu, GPU_TILES["generic"], tuple(map(_with_shaders, forms)), limits,
                  export=export_library)


def _with_shaders(form: Form) -> Form:
    """A form whose kernels glslc compiles."""
    def check() -> None:
        form.check()
        GLSLC.check()

    return replace(form, check=check)
