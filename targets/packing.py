"""The modules of kernels inside a library, as TVM packs them, so that they can be completed or replaced.

TVM's modules for a device exist only where TVM was built with the device's runtime. What is saved is the same bytes
everywhere, so that a library for any device can be made on any machine.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm_ffi

_HOST = "_lib"  # the kind of the library's own code
_FORCE = "TVM_COMPILE_FORCE_FALLBACK"


@dataclass
class Packed:
    """``imports``: who imports whom, as rows and columns of a sparse matrix of ``modules_expected`` modules.
    ``modules``: of each the kind and the bytes (None: the host's code)."""

    imports: bytes
    modules_expected: int
    modules: list[tuple[str, bytes | None]]

    @classmethod
    def of(cls, executable: Any) -> Packed:
        """What ``executable.export_library`` would write. ``executable``: from ``relax.build`` or ``tvm.compile``."""
        return cls.parse(tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(executable.mod).numpy().tobytes())

    @classmethod
    def parse(cls, data: bytes) -> Packed:
        """The format: the number of bytes that follow; the sparse matrix; of each module the kind and, unless it is
        the host's code, the bytes. Raises RuntimeError if that is not what is found."""
        try:
            (rows,) = struct.unpack_from("<Q", data, 8)
            (edges,) = struct.unpack_from("<Q", data, 16 + 8 * rows)
            position = start = 24 + 8 * (rows + edges)
            modules: list[tuple[str, bytes | None]] = []
            while position < len(data):
                kind, position = read_string(data, position)
                content = None
                if kind.decode() != _HOST:
                    content, position = read_string(data, position)
                modules.append((kind.decode(), content))
        except (struct.error, UnicodeDecodeError):
            raise _other_format() from None
        if len(data) - 8 != struct.unpack_from("<Q", data)[0]:
            raise _other_format()
        return cls(data[8:start], rows - 1, modules)

    def append(self, kind: str, content: bytes) -> None:
        """Add the module that TVM cannot save and has left out. Raises RuntimeError if it has left out none."""
        self.modules.append((kind, content))
        self._check()

    def replace(self, kind: str, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of every module of ``kind``."""
        self.modules = [(name, change(content) if name == kind and content is not None else content)
                        for name, content in self.modules]
        self._check()

    def to_bytes(self) -> bytes:
        body = self.imports + b"".join(string(kind) + (b"" if content is None else string(content))
                                       for kind, content in self.modules)
        return struct.pack("<Q", len(body)) + body

    def _check(self) -> None:
        if len(self.modules) != self.modules_expected:
            raise _other_format()


def export_packed(executable: Any, packed: Packed, path: str, link: Callable[..., None]) -> None:
    """As ``executable.export_library`` with the modules of ``packed`` in place of its own."""
    host = next(module for module in (executable.mod, *executable.mod.imports) if module.kind == "llvm")
    system_lib, prefix, target = (host.get_function(name)() for name in (
        "__tvm_is_system_module", "__tvm_get_system_lib_prefix", "_get_target_string"))
    blob = tvm_ffi.get_global_func("codegen.codegen_blob")(packed.to_bytes(), system_lib, target, prefix or "")
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / name) for name in ("lib0.o", f"{prefix or ''}devc.o")]
        for module, file in zip((host, blob), objects):
            module.write_to_file(file)
        link(path, objects)


def keep_source(kind: str, prepare: Callable[[Any], Any] = lambda module: module) -> None:
    """Let TVM keep the source of kernels for ``kind``, also where its own runtime would compile it at once.
    ``prepare(module)``: the module of device functions to generate it from."""
    name = f"target.build.{kind}"
    generate = tvm_ffi.get_global_func(name)

    def build(module: Any, target: Any) -> Any:
        before = os.environ.get(_FORCE)
        os.environ[_FORCE] = "1"
        try:
            return generate(prepare(module), target)
        finally:
            if before is None:
                del os.environ[_FORCE]
            else:
                os.environ[_FORCE] = before

    tvm_ffi.register_global_func(name, build, override=True)


def string(value: str | bytes) -> bytes:
    """TVM's serialized form of text or bytes."""
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def sequence(items: Iterable[bytes]) -> bytes:
    """TVM's serialized form of a list."""
    items = list(items)
    return struct.pack("<Q", len(items)) + b"".join(items)


def read_string(data: bytes, position: int) -> tuple[bytes, int]:
    """The text or bytes at ``position``, and what is behind. Raises struct.error when the data end early."""
    (size,) = struct.unpack_from("<Q", data, position)
    end = position + 8 + size
    if end > len(data):
        raise struct.error("string longer than the data")
    return data[position + 8:end], end


def _other_format() -> RuntimeError:
    return RuntimeError("TVM packs modules in another way than expected")
