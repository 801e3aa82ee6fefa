"""Parsers of what a library holds for CUDA: TVM's packed modules, NVIDIA's container, its ELF files."""

import io
import struct

from elftools.elf.elffile import ELFFile
from tvm_bytes import Reader, read_functions, read_library

_BLOB = "__tvm_ffi__library_bin"
_CUDA_MACHINE = "EM_CUDA"


def packed_modules(library):
    """The bytes that a shared library holds of its modules: {kind: bytes}."""
    with open(library, "rb") as file:
        elf = ELFFile(file)
        (symbol,) = elf.get_section_by_name(".dynsym").get_symbol_by_name(_BLOB)
        section = next(section for section in elf.iter_sections() if section["sh_type"] == "SHT_PROGBITS"
                       and section["sh_addr"] <= symbol["st_value"] < section["sh_addr"] + section["sh_size"])
        start = symbol["st_value"] - section["sh_addr"]
        data = section.data()[start:]
    (size,) = struct.unpack_from("<Q", data)
    return dict(read_library(data[:size + 8])[2])


def read_cuda(content):
    """TVM's module for CUDA: its form, {name: (types, tags)}, its code."""
    reader = Reader(content)
    form, functions, code = reader.text(), read_functions(reader), reader.bytes()
    assert reader.position == len(content)
    return form, {name: (types, tags) for name, (_, types, tags, _) in functions.items()}, code


def read_fatbin(data):
    """Of each part the kind ("ptx" or "elf"), the architecture, and the bytes, which may be compressed."""
    magic, version, header, size = struct.unpack_from("<IHHQ", data)
    assert (magic, version, size) == (0xBA55ED50, 1, len(data) - header)
    position, parts = header, []
    while position < len(data):
        kind, _, header, size = struct.unpack_from("<HHIQ", data, position)
        (architecture,) = struct.unpack_from("<I", data, position + 28)
        position += header
        parts.append(({1: "ptx", 2: "elf"}[kind], f"sm_{architecture}", data[position:position + size]))
        position += size
    assert position == len(data)
    return parts


def kernels_of(cubin):
    """Names of the kernels whose machine code is in an ELF file for NVIDIA's devices, and their bytes."""
    elf = ELFFile(io.BytesIO(cubin))
    assert elf["e_machine"] == _CUDA_MACHINE
    return {section.name.removeprefix(".text."): section["sh_size"] for section in elf.iter_sections()
            if section.name.startswith(".text.")}
