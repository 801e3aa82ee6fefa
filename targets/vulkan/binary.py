"""SPIR-V as words: what a module declares, and what we change in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_HEADER_WORDS = 5
# Opcodes and the positions of operands: the SPIR-V specification, 3.42.
_ENTRY_POINT, _CAPABILITY, _TYPE_INT, _TYPE_FLOAT, _CONSTANT = 15, 17, 21, 22, 43


def capabilities(code: bytes) -> set[int]:
    """The capabilities that a SPIR-V module declares."""
    return {words[1] for words in _instructions(code) if words[0] & 0xFFFF == _CAPABILITY}


def with_entry_point(code: bytes, name: str) -> bytes:
    """A SPIR-V module whose only entry point is called ``name``; GLSL's is always "main"."""
    changed = []
    for words in _instructions(code):
        if words[0] & 0xFFFF == _ENTRY_POINT:
            # opcode, execution model, function, name (zero-terminated, padded to words), interface variables
            end = next(i for i in range(3, len(words)) if 0 in struct.pack("<I", words[i])) + 1
            text = name.encode() + b"\0"
            text += b"\0" * (-len(text) % 4)
            words = [*words[:3], *struct.unpack(f"<{len(text) // 4}I", text), *words[end:]]
            words[0] = len(words) << 16 | _ENTRY_POINT
        changed.append(words)
    return _joined(code, changed)


def with_sound_constants(code: bytes) -> bytes:
    """A SPIR-V module whose constants of fewer than 32 bits fill their words as the specification asks: with the sign
    or zeros. spirv-opt (2022.4) leaves other bits there when it folds a bitcast."""
    widths: dict[int, tuple[int, bool]] = {}  # of a type of numbers: bits, and whether it is a signed integer
    changed = []
    for words in _instructions(code):
        opcode = words[0] & 0xFFFF
        if opcode in (_TYPE_INT, _TYPE_FLOAT):
            widths[words[1]] = words[2], opcode == _TYPE_INT and words[3] == 1
        if opcode == _CONSTANT and widths[words[1]][0] < 32:
            bits, signed = widths[words[1]]
            value = words[3] & (1 << bits) - 1
            words[3] = value | (-1 << bits & 0xFFFFFFFF if signed and value >> bits - 1 else 0)
        changed.append(words)
    return _joined(code, changed)


def _instructions(code: bytes) -> list[list[int]]:
    words = struct.unpack(f"<{len(code) // 4}I", code)
    found, i = [], _HEADER_WORDS
    while i < len(words):
        count = words[i] >> 16
        found.append(list(words[i:i + count]))
        i += count
    return found


def _joined(code: bytes, instructions: Iterable[Sequence[int]]) -> bytes:
    """A module with the header of ``code``."""
    words = [word for instruction in instructions for word in instruction]
    return code[:4 * _HEADER_WORDS] + struct.pack(f"<{len(words)}I", *words)
