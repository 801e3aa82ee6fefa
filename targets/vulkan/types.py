"""TIR's scalar types in GLSL, and conversions between them."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import ir

from .unsupported import Unsupported

# With GL_EXT_shader_explicit_arithmetic_types. A type asks for a capability of the device only where SPIR-V says so:
# float16_t does not when it is read from a buffer and converted, and nothing else.
GLSL = {
    "bool": "bool", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int",
    "uint32": "uint", "int64": "int64_t", "uint64": "uint64_t", "float16": "float16_t", "float32": "float",
    "float64": "double",
}
_VECTORS = {"float32": "vec", "int32": "ivec", "uint32": "uvec", "float16": "f16vec", "int8": "i8vec", "uint8": "u8vec",
            "int16": "i16vec", "uint16": "u16vec"}
# From a type's bits as an unsigned integer, and to them.
_FROM_BITS = {"float32": "uintBitsToFloat({})", "float16": "uint16BitsToFloat16({})"}
_TO_BITS = {"float32": "floatBitsToUint({})", "float16": "float16BitsToUint16({})"}


def dtype_of(expr: Any) -> str:
    """An expression's type, lanes included: "float32x4"."""
    return str(expr.ty.dtype)


def known(dtype: str) -> str:
    """``dtype`` itself. Raises Unsupported when its elements have no GLSL type."""
    if split(dtype)[0] not in GLSL:
        raise Unsupported(f"numbers of type {dtype}")
    return dtype


def reads_memory(expr: Any) -> bool:
    """Whether an expression loads from a buffer."""
    loads: list[Any] = []
    tvm_ffi.structural_walk(expr, (ir.TensorLoad, loads.append))
    return bool(loads)


def split(dtype: str) -> tuple[str, int]:
    """A type's element and its lanes."""
    parsed = tvm.DataType(dtype)
    return str(parsed.with_lanes(1)), parsed.lanes


def bits(dtype: str) -> int:
    """Bits of an element in memory."""
    return 8 if dtype == "bool" else tvm.DataType(dtype).bits


def vector(dtype: str, width: int) -> str | None:
    """GLSL's vector of 2 or 4 elements; None where we do without."""
    return f"{_VECTORS[dtype]}{width}" if dtype in _VECTORS else None


def stored(dtype: str) -> str:
    """The type of an element in a buffer: a bool is a byte."""
    return "int8_t" if dtype == "bool" else GLSL[dtype]


def from_stored(text: str, dtype: str) -> str:
    """The value of an element of a buffer."""
    return f"(int({text}) != 0)" if dtype == "bool" else text


def to_stored(text: str, dtype: str) -> str:
    """A value as an element of a buffer."""
    return f"int8_t({text} ? 1 : 0)" if dtype == "bool" else text


def convert(text: str, source: str, target: str) -> str:
    """``text`` of type ``source`` as ``target``."""
    if source == target:
        return text
    if target == "bool":
        return f"({text} != {GLSL[source]}(0))"
    if source == "bool" and target not in ("int32", "uint32", "float32"):
        text = f"int({text})"
    return f"{GLSL[target]}({text})"


def reinterpret(lanes: list[str], source: str, target: str) -> list[str]:
    """The bits of a vector as one of ``target``; of up to 32 bits each where their sizes differ. The lowest bits come
    first."""
    have, want = bits(source), bits(target)
    words = [_TO_BITS[source].format(text) if source in _TO_BITS else convert(text, source, f"uint{have}")
             for text in lanes]
    if have != want:
        words = [convert(word, f"uint{have}", "uint32") for word in words]
        if want < have:
            words = [f"({word} >> {shift}u)" for word in words for shift in range(0, have, want)]
        else:
            run = want // have
            shifted = [f"({word} << {i % run * have}u)" for i, word in enumerate(words)]
            words = [f"({' | '.join(shifted[first:first + run])})" for first in range(0, len(shifted), run)]
        words = [convert(word, "uint32", f"uint{want}") for word in words]
    return [_FROM_BITS[target].format(word) if target in _FROM_BITS else convert(word, f"uint{want}", target)
            for word in words]
