"""Sizes and indices in 32 bits: what TIR computes in int64 because Relax counts in it.

64-bit integers are a feature that many phones' GPUs lack, and slow elsewhere. An expression is narrowed when all it is
made of are sizes (scalar arguments), indices of groups, items and loops, and constants: these count elements of
buffers, of which a target's largest has fewer than 2^31. Sums and products are then right whatever overflows between,
as 32-bit integers wrap; for the rest we rely on the same bound. What is made of what is read from memory, and what
provably exceeds 32 bits, is computed in 64, unless it is the number of an element.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.sym.analyzer import Analyzer

from .types import dtype_of, reads_memory

_LARGEST = 2**31 - 1
_BINARY = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)
_SMALL = ("bool", "int8", "uint8", "int16", "uint16", "int32")  # their values are int32's


class Narrowing:
    """Knows the int64 variables that are held in 32 bits."""

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer
        self._narrow: dict[Any, Any] = {}
        self._data: set[Any] = set()  # variables that depend on what is read from memory

    def note(self, var: Any, value: Any) -> None:
        """Remember whether a variable's value depends on what is read from memory."""
        if self._is_data(value):
            self._data.add(var)

    def declare(self, var: Any) -> Any:
        """Hold an int64 variable in 32 bits from now on: the variable that does."""
        return self._narrow.setdefault(var, tirx.Var(var.name, "int32"))

    def variable(self, var: Any) -> Any:
        """What holds a variable in 32 bits; None if nothing does."""
        return self._narrow.get(var)

    def is_index(self, expr: Any) -> bool:
        """Whether an int64 expression may be computed in 32 bits."""
        if dtype_of(expr) != "int64":
            return False
        if isinstance(expr, tirx.IntImm):
            return -_LARGEST <= int(expr.value) <= _LARGEST
        if isinstance(expr, ir.Var):
            return expr in self._narrow
        if isinstance(expr, tirx.Cast):
            return dtype_of(expr.value) == "int32" and not self._is_data(expr.value)
        if isinstance(expr, tirx.Select):
            return self.is_index(expr.true_value) and self.is_index(expr.false_value)
        return isinstance(expr, _BINARY) and self.is_index(expr.a) and self.is_index(expr.b) and self._fits(expr)

    def index(self, expr: Any) -> Any:
        """An int64 expression that counts elements, as int32; lanes stay."""
        dtype = dtype_of(expr)
        if not dtype.startswith("int64"):
            return expr
        if isinstance(expr, tirx.Ramp):
            return tirx.Ramp(self.index(expr.base), self.index(expr.stride), expr.lanes)
        if isinstance(expr, tirx.Broadcast):
            return tirx.Broadcast(self.index(expr.value), expr.lanes)
        narrow = dtype.replace("int64", "int32")
        if isinstance(expr, tirx.IntImm) and self.is_index(expr):
            return tirx.IntImm(narrow, int(expr.value))
        if isinstance(expr, ir.Var) and expr in self._narrow:
            return self._narrow[expr]
        if isinstance(expr, tirx.Cast) and dtype_of(expr.value).split("x")[0] in _SMALL:
            return tirx.Cast(narrow, expr.value)
        if isinstance(expr, tirx.Add | tirx.Sub | tirx.Mul) or isinstance(expr, _BINARY) and self.is_index(expr):
            return type(expr)(self.index(expr.a), self.index(expr.b))
        if isinstance(expr, tirx.Select):
            return tirx.Select(expr.condition, self.index(expr.true_value), self.index(expr.false_value))
        return tirx.Cast(narrow, expr)

    def _is_data(self, expr: Any) -> bool:
        used: list[Any] = []
        tvm_ffi.structural_walk(expr, (ir.Var, used.append))
        return reads_memory(expr) or not self._data.isdisjoint(used)

    def _fits(self, expr: Any) -> bool:
        bound = self._analyzer.const_int_bound(expr)
        return all(abs(end) <= _LARGEST or abs(end) >= 2**62 for end in (bound.min_value, bound.max_value))
