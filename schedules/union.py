"""How kernels hand the union of active experts on (what it holds: the kernel ``union``)."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from .builder import Kernel


def union_tensors(k: Kernel, experts: int, n: Any) -> tuple[T.Buffer, T.Buffer, T.Buffer, T.Buffer]:
    """Declare the next four parameters: ids, count, uses and tokens of a union."""
    return (k.tensor((experts,), "int32"), k.tensor((1,), "int32"), k.tensor((experts,), "int32"),
            k.tensor((experts, n), "int32"))
