"""The OpenCL family: GPUs of this machine."""

from __future__ import annotations

import re
from typing import Any

import tvm
import tvm_ffi

import schedules.gpu
from blockffn_mlc.target import Target
from schedules.tiles import GPU_TILES

from .cpu import plain_host
from .limits import Limits
from .tools import host_library

# A work-group and the threadgroup memory: AMD's 256 work-items, everyone's 32 KB. Buffers: a quarter of 4 GB.
LIMITS = Limits(work_group=256, threadgroup_bytes=32768, buffer_bytes=1 << 30, statements=1000,
                source_bytes=1 << 17)


def opencl_target() -> Target:
    """The target ``opencl``: kernels for any OpenCL 1.2 device, host code for every processor of this architecture."""
    host, text = plain_host()
    return Target("opencl", text, opencl(LIMITS, host), schedules.gpu, GPU_TILES["opencl"], (host_library(),), LIMITS)


def opencl(limits: Limits, host: tvm.target.Target) -> tvm.target.Target:
    """TVM's target for devices with ``limits``."""
    return tvm.target.Target({"kind": "opencl", "max_num_threads": limits.work_group,
                              "max_threads_per_block": limits.work_group,
                              "max_shared_memory_per_block": limits.threadgroup_bytes}, host=host)


def without_prototypes(source: str, target: Any = None) -> str:
    """OpenCL C without declarations of kernels. TVM declares all kernels of a module in front of each, but every kernel
    is a program of its own: they would only be read, and would change the key of its compiled form whenever another
    kernel changes."""
    return re.sub(r"^__kernel [^{;]*;\n", "", source, flags=re.MULTILINE)


tvm_ffi.register_global_func("tvm_callback_opencl_postproc", without_prototypes)  # TVM's name, called for every kernel
