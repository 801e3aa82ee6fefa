"""TVM's lowering asks each target what becomes of a mathematical function."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import Op
from tvm.tirx.op import register_intrin_lowering

from .intrinsics import INTEGER_INTRINSICS, INTRINSICS


def register_intrinsics() -> None:
    """Let the functions of our table keep their names in kernels for Vulkan; other ones become what TVM makes of them
    by default. Not of ``fma``: with a rule for it TVM would make one of every product in a sum, where drivers know
    better."""
    names = Op.list_op_names()
    for name in {*INTRINSICS, *INTEGER_INTRINSICS} - {"fma"}:
        for operator in (f"tirx.{name}", f"prim.{name}"):
            if operator in names:
                register_intrin_lowering(operator, target="vulkan", f=_keep, level=99)


def _keep(call: Any) -> Any:
    return tirx.call_pure_extern(str(call.ty.dtype), str(call.op.name).partition(".")[2], *call.args)
