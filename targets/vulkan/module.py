"""Kernels in a library, in the format of TVM's Vulkan runtime.

TVM's module for Vulkan exists only where TVM was built with Vulkan. ``build`` therefore gives TVM a module of plain
text, the shaders, and ``export_library`` writes into the library what TVM's module would have been saved as: nothing of
Vulkan is needed on the machine that compiles.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi

from blockffn_mlc.errors import UserError

from ..packing import Packed, export_packed, sequence, string
from .shader import Shader, generate
from .spirv import compile_shaders
from .unsupported import Unsupported

_KIND = "vulkan"
_HANDLE = (3, 64, 1)
_TYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}  # DLPack's
_UNIFORM_BUFFER = 1  # a flag of TVM's SPIRVShader


def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """``target.build.vulkan``: a module with the text of the shaders. Raises UserError for what has no GLSL."""
    shaders = []
    for var, func in sorted(module.functions.items(), key=lambda item: item[0].name_hint):
        try:
            shaders.append(generate(var.name_hint, func))
        except Unsupported as error:
            raise UserError(f"kernel {var.name_hint}: {error} cannot be compiled for Vulkan; express it otherwise or "
                            "choose another target") from None
    text = "".join(shader.text() for shader in shaders)
    return tvm_ffi.get_global_func("runtime.SourceModuleCreate")(text, _KIND)


def module_bytes(shaders: list[Shader]) -> bytes:
    """What TVM's Vulkan runtime saves and loads: the format's name, the functions' signatures, their SPIR-V."""
    functions, codes = [], []
    for shader, code in zip(shaders, compile_shaders(shaders)):
        name = string(shader.name)
        types = sequence(struct.pack("<BBH", *_dl_type(dtype)) for dtype in shader.arguments)
        marks = sequence(struct.pack("<i", 0) for _ in shader.arguments)
        functions.append(name + name + types + sequence(map(string, shader.tags)) + marks)
        flag = _UNIFORM_BUFFER if shader.uniform else 0
        codes.append(name + string(struct.pack("<IQ", flag, len(code) // 4) + code))
    return string(_KIND) + sequence(functions) + sequence(codes)


def export_library(executable: Any, path: str, link: Callable[..., None]) -> None:
    """As ``executable.export_library``, shaders as SPIR-V. ``executable``: from ``relax.build`` or ``tvm.compile``.
    Raises UserError when glslc is missing."""
    host = next(module for module in (executable.mod, *executable.mod.imports) if module.kind == "llvm")
    text = next((module.inspect_source() for module in host.imports if module.kind == "source"), None)
    if text is None:  # TVM's own generator made the kernels
        executable.export_library(path, fcompile=link)
        return
    packed = Packed.of(executable)
    packed.append(_KIND, module_bytes(Shader.parse(text)))
    export_packed(executable, packed, path, link)


def _dl_type(dtype: str) -> tuple[int, int, int]:
    if dtype == "handle":
        return _HANDLE
    parsed = tvm.DataType(dtype)
    return _TYPE_CODES[dtype.rstrip("0123456789")], parsed.bits, parsed.lanes
