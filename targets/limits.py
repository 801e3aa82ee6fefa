"""What a device allows a kernel, checked on the device functions that are about to become its source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.sym.analyzer import Analyzer, ConstIntBound

from blockffn_mlc.errors import UserError

_LEAVES = (tirx.BufferStore, tirx.Evaluate, tirx.Bind)
_LARGER = ("choose another --target, whose devices allow more (docs/targets.md); where there is none, please report "
           "the kernel with the model's config.json")
_SMALLER = ("choose a smaller --context-window or --prefill-chunk, 4-bit weights (--quantization q4f16_1) or another "
            "--target, whose devices allow more (docs/targets.md)")

_FEWER = ("leave out MLC's functions, whose kernels take the most (--no-mlc), or choose another --target, whose "
          "devices allow more (docs/targets.md)")

@dataclass(frozen=True)
class Limits:
    """Of one device kernel: ``work_group`` work-items in a group; ``threadgroup_bytes`` of memory they share;
    ``buffer_bytes`` of a single buffer; ``statements`` once loops are unrolled and ``source_bytes`` of text, which
    phones' compilers must digest; where the device has such limits, ``buffers`` that a kernel takes and ``groups``
    along an axis of its grid."""

    work_group: int
    threadgroup_bytes: int
    buffer_bytes: int
    statements: int
    source_bytes: int
    buffers: int | None = None
    groups: int | None = None

    def check_shapes(self, target: str, kernels: dict[str, tirx.PrimFunc], longest: int) -> None:
        """Refuse kernels before lowering that take a buffer larger than the device has, or run in a grid that is;
        symbolic extents are at most ``longest``. Raises UserError."""
        for name, func in kernels.items():
            largest = max((_buffer_bytes(param.ty, longest) for param in func.params
                           if isinstance(param.ty, tirx.BufferType)), default=0)
            _check(target, name, "a buffer", largest, "bytes", self.buffer_bytes, _SMALLER)
            _check(target, name, "a grid", grid(func, longest), "work-groups along an axis", self.groups, _SMALLER)

    def check_functions(self, target: str, module: tvm.IRModule) -> dict[str, int]:
        """Refuse device functions (behind SplitHostDevice) that exceed a limit; returns what the most demanding of them
        take of ``work_group`` and ``threadgroup_bytes``. Raises UserError; RuntimeError when there are none, as then
        nothing was checked."""
        functions = _found(device_functions(module), target, "device functions")
        for name, func in functions.items():
            _check(target, name, "a list", buffers(func), "buffers", self.buffers, _FEWER)
            for what, value, unit, limit in (
                    ("a work-group", work_group(func), "work-items", self.work_group),
                    ("threadgroup memory", threadgroup_bytes(func), "bytes", self.threadgroup_bytes),
                    ("an unrolled body", statements(func.body), "statements", self.statements)):
                _check(target, name, what, value, unit, limit, _LARGER)
        return {"work_group": max(map(work_group, functions.values())),
                "threadgroup_bytes": max(map(threadgroup_bytes, functions.values()))}

    def check_source(self, target: str, source: str) -> None:
        """Refuse a module's text if a kernel's part of it is too long. Raises UserError; RuntimeError when it has no
        kernels."""
        for name, text in _found(kernel_sources(source), target, "kernels' source").items():
            _check(target, name, "source text", len(text), "bytes", self.source_bytes, _LARGER)


def device_functions(module: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """The functions of a module that are launched on a device."""
    return {var.name_hint: func for var, func in module.functions.items()
            if func.attrs and "tirx.kernel_launch_params" in func.attrs}


def work_group(func: tirx.PrimFunc) -> int:
    """Work-items of a group."""
    extents = {node.node.thread_tag: int(node.value) for node in _nodes(func.body, tirx.AttrStmt)
               if node.attr_key == "thread_extent" and node.node.thread_tag.startswith("threadIdx")}
    return math.prod(extents.values())


def grid(func: tirx.PrimFunc, longest: int) -> int:
    """Work-groups along the longest axis of a kernel's launches; symbolic extents are at most ``longest``."""
    analyzer = Analyzer()
    extents = [node.value for node in _nodes(func.body, tirx.AttrStmt)
               if node.attr_key == "thread_extent" and node.node.thread_tag.startswith("blockIdx")]
    for extent in extents:
        for var in _nodes(extent, ir.Var):
            analyzer.update(var, ConstIntBound(0, longest), True)
    return max((int(analyzer.const_int_bound(extent).max_value) for extent in extents), default=0)


def buffers(func: tirx.PrimFunc) -> int:
    """Buffers that a device function takes."""
    return sum(isinstance(param.ty, ir.PointerType) for param in func.params)


def threadgroup_bytes(func: tirx.PrimFunc) -> int:
    """Bytes of memory that a work-group shares."""
    return sum(_buffer_bytes(node.buffer, 0) for node in _nodes(func.body, tirx.AllocBuffer)
               if node.buffer.scope().startswith("shared"))


def statements(body: tirx.Stmt) -> int:
    """Stores, calls and bindings in a body; in a loop that codegen is told to unroll, as often as it runs."""
    count = sum(1 for _ in _nodes(body, _LEAVES))
    for loop in _nodes(body, tirx.For):
        if loop.kind == tirx.ForKind.UNROLLED:
            count += (int(loop.extent) - 1) * statements(loop.body)
    return count


def kernel_sources(source: str) -> dict[str, str]:
    """The text of every kernel in a module, as a driver's compiler is given it."""
    parts = (part.partition("\n") for part in source.split("// Function: ")[1:])
    return {name: text for name, _, text in parts}


def _found(checked: dict[str, Any], target: str, what: str) -> dict[str, Any]:
    if not checked:
        raise RuntimeError(f"target {target}: no {what} to check against its limits; TVM's lowering has changed")
    return checked


def _check(target: str, kernel: str, what: str, value: int, unit: str, limit: int | None, remedy: str) -> None:
    if limit is not None and value > limit:
        raise UserError(f"kernel {kernel}: {what} of {value} {unit}, target {target} allows {limit}; {remedy}")


def _buffer_bytes(buffer: Any, longest: int) -> int:
    """Bytes of a buffer whose symbolic extents are ``longest``."""
    size = math.prod(int(extent) if isinstance(extent, tirx.IntImm) else longest for extent in buffer.shape)
    dtype = tvm.DataType(str(buffer.dtype))
    return size * -(-dtype.bits // 8) * dtype.lanes


def _nodes(body: tirx.Stmt, kinds: type | tuple[type, ...]) -> Iterator[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(body, (kinds, found.append))
    return iter(found)
