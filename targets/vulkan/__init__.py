"""The Vulkan family: TIR to GLSL to SPIR-V, where TVM itself cannot (docs/vulkan.md)."""

from __future__ import annotations

import tvm_ffi

from .lowering import register_intrinsics
from .module import build, export_library
from .target import vulkan_android_target, vulkan_target

__all__ = ["export_library", "vulkan_android_target", "vulkan_target"]

if tvm_ffi.get_global_func("target.build.vulkan", allow_missing=True) is None:
    register_intrinsics()
    tvm_ffi.register_global_func("target.build.vulkan", build)
