"""Kernels in a library, in the format of TVM's Vulkan runtime.

TVM's module for Vulkan exists only where TVM was built with Vulkan. ``build`` therefore gives TVM a module of plain
text, the shaders, and ``export_library`` writes into the library what TVM's module would have been saved as: nothing of
Vulkan is needed on the machine that compiles.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from blockffn_mlc.errors import UserError

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
        name = _string(shader.name)
        functions.append(name + name + _list(struct.pack("<BBH", *_dl_type(dtype)) for dtype in shader.arguments)
                         + _list(map(_string, shader.tags)) + _list(struct.pack("<i", 0) for _ in shader.arguments))
        flag = _UNIFORM_BUFFER if shader.uniform else 0
        codes.append(name + _string(struct.pack("<IQ", flag, len(code) // 4) + code))
    return _string(_KIND) + _list(functions) + _list(codes)


def export_library(executable: Any, path: str, link: Callable[..., None]) -> None:
    """As ``executable.export_library``, shaders as SPIR-V. ``executable``: from ``relax.build`` or ``tvm.compile``.
    Raises UserError when glslc is missing."""
    host = next(module for module in (executable.mod, *executable.mod.imports) if module.kind == "llvm")
    text = next((module.inspect_source() for module in host.imports if module.kind == "source"), None)
    if text is None:  # TVM's own generator made the kernels
        executable.export_library(path, fcompile=link)
        return
    packed = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(executable.mod).numpy().tobytes()
    packed = with_module(packed, _KIND, module_bytes(Shader.parse(text)))
    system_lib, prefix, target = (host.get_function(name)() for name in (
        "__tvm_is_system_module", "__tvm_get_system_lib_prefix", "_get_target_string"))
    blob = tvm_ffi.get_global_func("codegen.codegen_blob")(packed, system_lib, target, prefix or "")
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / name) for name in ("lib0.o", f"{prefix or ''}devc.o")]
        for module, file in zip((host, blob), objects):
            module.write_to_file(file)
        link(path, objects)


def with_module(packed: bytes, kind: str, content: bytes) -> bytes:
    """TVM's packed modules, completed by one that TVM cannot save and has left out. The format: the number of bytes
    that follow; who imports whom, as rows and columns of a sparse matrix; of each module the kind and, unless it is the
    host's code, the bytes. Raises RuntimeError if that is not what is found."""
    (modules,) = struct.unpack_from("<Q", packed, 8)
    (imports,) = struct.unpack_from("<Q", packed, 16 + 8 * modules)
    position, found = 24 + 8 * (modules + imports), 0
    while position < len(packed):
        name, position = _read(packed, position)
        if name != b"_lib":
            _, position = _read(packed, position)
        found += 1
    if position != len(packed) or modules - 1 != found + 1:  # a row more than there are modules
        raise RuntimeError("TVM packs modules in another way than expected")
    body = packed[8:] + _string(kind) + _string(content)
    return struct.pack("<Q", len(body)) + body


def _read(packed: bytes, position: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<Q", packed, position)
    end = position + 8 + size
    return packed[position + 8:end], end


def _dl_type(dtype: str) -> tuple[int, int, int]:
    if dtype == "handle":
        return _HANDLE
    parsed = tvm.DataType(dtype)
    return _TYPE_CODES[dtype.rstrip("0123456789")], parsed.bits, parsed.lanes


def _string(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def _list(items: Iterable[bytes]) -> bytes:
    items = list(items)
    return struct.pack("<Q", len(items)) + b"".join(items)
