"""What TVM's CUDA C++ lacks."""

from __future__ import annotations

import re
from typing import Any

from tvm import tirx

_KERNEL = r'^extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\([^{;]*'


def with_names(source: str, target: Any = None) -> str:
    """The text of a module with the line "// Function: NAME" in front of every kernel, as TVM writes for other devices,
    and without declarations of kernels, which none calls."""
    source = re.sub(rf"{_KERNEL};\n", "", source, flags=re.MULTILINE)
    return re.sub(rf"{_KERNEL}\{{", r"// Function: \1\n\g<0>", source, flags=re.MULTILINE)


def popcount(call: Any) -> Any:
    """The bits of a number that are set; TVM's own rule knows unsigned numbers only."""
    dtype = str(call.ty.dtype)
    return tirx.call_pure_extern(dtype, "__popcll" if dtype.endswith("64") else "__popc", *call.args)
