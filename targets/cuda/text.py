"""What TVM's CUDA C++ lacks."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tvm import tirx

_KERNEL = r'^extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\([^{;]*'
_ROOM = (1 << 16) // 128  # threads of a multiprocessor when each has 128 of its registers
_BLOCKS = 16  # that every multiprocessor can have


def completed(source: str, target: Any = None) -> str:
    """The text of a module with the line "// Function: NAME" in front of every kernel, as TVM writes for other devices,
    without declarations of kernels, which none calls, and with what a multiprocessor must have room for: as many blocks
    as leave each thread 128 registers. Without that number ptxas spills a few to make room for one block more."""
    source = re.sub(rf"{_KERNEL};\n", "", source, flags=re.MULTILINE)
    source = re.sub(rf"{_KERNEL}\{{", r"// Function: \1\n\g<0>", source, flags=re.MULTILINE)
    return re.sub(r"__launch_bounds__\((\d+)\)", _bounds, source)


def with_room(source: str, kernels: Collection[str]) -> str:
    """``completed`` text in which a multiprocessor must have room for half as many blocks of ``kernels``, one at
    least: their threads then have twice the registers."""
    def halved(match: re.Match[str]) -> str:
        threads, blocks, name = match.groups()
        return f"__launch_bounds__({threads}, {max(int(blocks) // 2, 1) if name in kernels else blocks}) {name}("

    return re.sub(r"__launch_bounds__\((\d+), (\d+)\) (\w+)\(", halved, source)


def popcount(call: Any) -> Any:
    """The bits of a number that are set; TVM's own rule knows unsigned numbers only."""
    dtype = str(call.ty.dtype)
    return tirx.call_pure_extern(dtype, "__popcll" if dtype.endswith("64") else "__popc", *call.args)


def _bounds(match: re.Match[str]) -> str:
    threads = int(match[1])
    return f"__launch_bounds__({threads}, {min(max(_ROOM // threads, 1), _BLOCKS)})"
