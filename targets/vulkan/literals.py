"""Numbers as GLSL."""

from __future__ import annotations

import numpy as np

from .types import GLSL, convert

_SUFFIXES = {"int32": "", "uint32": "u", "int64": "L", "uint64": "UL"}


def integer(value: int, dtype: str) -> str:
    """An integer or bool."""
    if dtype == "bool":
        return "true" if value else "false"
    if dtype == "int32" and value == -2**31:
        return "(-2147483647 - 1)"  # a sign is an operator, and 2^31 is no int
    if dtype in _SUFFIXES:
        return f"{value}{_SUFFIXES[dtype]}" if value >= 0 else f"({value}{_SUFFIXES[dtype]})"
    return f"{GLSL[dtype]}({value})"


def floating(value: float, dtype: str) -> str:
    """A floating-point number: the nearest float32, in as few digits as name it, unless ``dtype`` is float64. By its
    bits where drivers need not honour it otherwise: infinite, NaN, below the normal range."""
    number = np.float32(value)
    if dtype == "float64" and np.isfinite(value):
        return f"({value!r}LF)"
    if np.isfinite(number) and (number == 0 or abs(number) >= np.finfo(np.float32).tiny):
        text = f"({float(str(number))!r})"
    else:
        text = f"uintBitsToFloat(0x{number.view(np.uint32):08x}u)"
    return convert(text, "float32", dtype)
