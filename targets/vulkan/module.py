"""Kernels in a library, in the format of TVM's Vulkan runtime.

TVM's module for Vulkan exists only where TVM was built with Vulkan. ``build`` therefore gives TVM a module of plain
text, the shaders, and ``export_library`` writes into the library what TVM's module would have been saved as: nothing of
Vulkan is needed on the machine that compiles.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial
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
    imported = list(host.imports)
    texts = [module.inspect_source() for module in imported if module.kind == "source"]
    shaders = [shader for text in texts for shader in Shader.parse(text)]
    _import(host, [module for module in imported if module.kind != "source"])  # TVM refuses to export text
    try:
        executable.export_library(path, fcompile=link, fpack_imports=partial(_pack, module_bytes(shaders)))
    finally:
        _import(host, imported)


def _import(module: Any, imported: Iterable[Any]) -> None:
    module.clear_imports()
    for other in imported:
        module.import_module(other)


def _pack(vulkan: bytes, module: tvm.runtime.Module, system_lib: bool, prefix: str, folder: str) -> str:
    """For ``export_library``: an object file with all modules that ``module`` imports, and one for Vulkan."""
    packed = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
    host = next(other for other in (module, *module.imports) if other.kind == "llvm")
    blob = tvm_ffi.get_global_func("codegen.codegen_blob")(
        with_import(packed, _KIND, vulkan), system_lib, host.get_function("_get_target_string")(), prefix)
    path = Path(folder) / f"{prefix}devc.o"
    blob.write_to_file(str(path))
    return str(path)


def with_import(packed: bytes, kind: str, content: bytes) -> bytes:
    """TVM's packed modules, with another one that the host's code imports. The format: the number of bytes that follow;
    who imports whom, as rows and columns of a sparse matrix; of each module the kind and, unless it is the host's code,
    the bytes. Raises RuntimeError if that is not what is found."""
    rows, position = _numbers(packed, 8)
    columns, position = _numbers(packed, position)
    first, kinds = position, []
    while position < len(packed):
        name, position = _read(packed, position)
        kinds.append(name)
        if name != b"_lib":
            _, position = _read(packed, position)
    if position != len(packed) or len(rows) != len(kinds) + 1 or kinds.count(b"_lib") != 1:
        raise RuntimeError("TVM packs modules in another way than expected")
    host = kinds.index(b"_lib") + 1
    columns.insert(rows[host], len(kinds))
    rows = [*rows[:host], *(end + 1 for end in rows[host:])]
    rows.append(rows[-1])  # it imports none itself
    tree = (_list(struct.pack("<Q", number) for number in numbers) for numbers in (rows, columns))
    body = b"".join((*tree, packed[first:], _string(kind), _string(content)))
    return struct.pack("<Q", len(body)) + body


def _numbers(packed: bytes, position: int) -> tuple[list[int], int]:
    (count,) = struct.unpack_from("<Q", packed, position)
    return list(struct.unpack_from(f"<{count}Q", packed, position + 8)), position + 8 + 8 * count


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
