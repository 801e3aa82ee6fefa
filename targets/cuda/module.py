"""Kernels in a library, as machine code: what TVM's CUDA runtime loads without a compiler."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..packing import Packed, export_packed, read_string, string
from .compilers import Compiler, Cubin, find_compiler
from .report import read_log, report
from .text import with_room

_KIND, _SOURCE = "cuda", "cuda"  # TVM's names of the module and of its form as text


def export_library(executable: Any, path: str, link: Callable[..., None], architectures: Sequence[str]) -> None:
    """As ``executable.export_library``; where CUDA's compilers are, kernels as machine code for each of
    ``architectures`` and as PTX, which the driver compiles, for devices newer than the last. A report of what kernels
    take is then written beside the library. Raises UserError when the compiler refuses the kernels."""
    packed, compiler = Packed.of(executable), find_compiler()

    def compile_module(content: bytes) -> bytes:
        functions, source = split(content)
        source, cubins = compile_kernels(compiler, source, architectures)
        newest = architectures[-1]
        code = compiler.fatbin(cubins, compiler.ptx(source, newest), newest)
        Path(path).with_suffix(".json").write_text(json.dumps(report(compiler, source, cubins), indent=1),
                                                   encoding="utf-8")
        return string("fatbin") + functions + string(code)

    if compiler is not None:
        packed.replace(_KIND, compile_module)
    export_packed(executable, packed, path, link)


def compile_kernels(compiler: Compiler, source: str, architectures: Sequence[str]) -> tuple[str, list[Cubin]]:
    """A module's text and its machine code for each of ``architectures``. In the text kernels whose registers spill on
    any of them have more, at the cost of blocks beside each other, until none spills or a block has all registers."""
    while True:
        cubins = [compiler.cubin(source, architecture) for architecture in architectures]
        spilled = {name for cubin in cubins for name, usage in read_log(cubin.log).items()
                   if usage.spill_stores or usage.spill_loads}
        roomier = with_room(source, spilled)
        if roomier == source:
            return source, cubins
        source = roomier


def split(content: bytes) -> tuple[bytes, str]:
    """A module that TVM saved as source: its functions, serialized, and that source. Raises RuntimeError for others."""
    try:
        form, start = read_string(content, 0)
        (functions,) = struct.unpack_from("<Q", content, start)
        position = start + 8
        for _ in range(functions):
            for _ in range(2):
                _, position = read_string(content, position)
            position = _behind_list(content, position)  # types
            (tags,) = struct.unpack_from("<Q", content, position)
            position += 8
            for _ in range(tags):
                _, position = read_string(content, position)
            position = _behind_list(content, position)  # marks
        source, end = read_string(content, position)
    except struct.error:
        form, end = b"", 0
    if form.decode(errors="replace") != _SOURCE or end != len(content):
        raise RuntimeError("TVM saves modules for CUDA in another way than expected")
    return content[start:position], source.decode()


def _behind_list(content: bytes, position: int) -> int:
    """Behind a list of numbers of four bytes."""
    return position + 8 + 4 * struct.unpack_from("<Q", content, position)[0]
