"""Where a kernel's data is: storage buffers, threadgroup and private arrays, and how their elements are reached.

A storage buffer is an array of scalars to GLSL. Drivers make one wide load of four neighbouring elements only if the
shader says so, hence where TIR reads vectors whose address is a multiple of their size, the same binding is declared a
second time as an array of vectors. The compiler may assume that differently declared buffers do not overlap: so only
one declaration is used for a buffer that the kernel writes, that of scalars unless all accesses are vectors of one
width and none is in an expression that may not be evaluated. Threadgroup and private arrays are arrays of scalars
always; those are in registers, or banks, of scalars anyway.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.sym.analyzer import Analyzer

from .types import GLSL, bits, dtype_of, split, stored, vector
from .unsupported import Unsupported

GUARDS = (tirx.Select, tirx.And, tirx.Or, tirx.While, ir.Call)


@dataclass
class Storage:
    """An array. ``dtype``: of its elements. ``binding``: of a storage buffer. ``views``: its declarations, as (element
    type, width). ``accesses``: the views that the kernel would like, ``written``: it is written."""

    name: str
    scope: str
    dtype: str
    binding: int | None = None
    written: bool = False
    accesses: set[tuple[str, int]] = field(default_factory=set)
    views: set[tuple[str, int]] = field(default_factory=set)

    def view(self, dtype: str, width: int) -> str:
        """The name of the array of vectors of ``width``; declared if it was not."""
        if self.binding is None:
            return self.name
        self.views.add((dtype, width))
        suffix = ("" if dtype == self.dtype else f"_{dtype}") + ("" if width == 1 else f"_x{width}")
        return self.name + suffix


class Buffers:
    """The buffers of one kernel. ``analyzer`` knows no variables: what it proves holds everywhere."""

    def __init__(self, body: tirx.Stmt) -> None:
        self._analyzer = Analyzer()
        self._storages: dict[Any, Storage] = {}
        self._body = body

    def add_parameter(self, var: Any, name: str, binding: int) -> None:
        """A pointer parameter: storage buffer number ``binding``."""
        dtype, _ = split(str(var.ty.element_type.dtype))
        self._storages[var] = Storage(name, "global", _known(dtype), binding)

    def find_uses(self) -> None:
        """Find how the parameters are used, before code is generated."""
        aliases: dict[Any, Any] = {}

        def declare(node: tirx.DeclBuffer) -> None:
            aliases[node.buffer] = node.data

        def note(buffer: Any, index: Any) -> Storage | None:
            storage = self._storages.get(aliases.get(buffer))
            if storage is not None:
                dtype, lanes = split(str(buffer.dtype))
                storage.accesses.add((dtype, self._widest(dtype, lanes, index)))
            return storage

        def load(node: ir.TensorLoad) -> None:
            note(node.source, node.indices[0])

        def store(node: tirx.BufferStore) -> None:
            storage = note(node.buffer, node.indices[0])
            if storage is not None:
                storage.written = True

        def guarded_load(node: ir.TensorLoad) -> None:
            storage = note(node.source, node.indices[0])
            if storage is not None:
                storage.accesses.add((split(str(node.source.dtype))[0], 1))

        def guard(node: Any) -> None:
            for part in guarded(node):
                tvm_ffi.structural_walk(part, (ir.TensorLoad, guarded_load))

        tvm_ffi.structural_walk(self._body, (tirx.DeclBuffer, declare))
        tvm_ffi.structural_walk(self._body, (tirx.BufferStore, store))
        tvm_ffi.structural_walk(self._body, (ir.TensorLoad, load))
        tvm_ffi.structural_walk(self._body, (GUARDS, guard))
        for storage in self._storages.values():
            if storage.written and len({dtype for dtype, _ in storage.accesses}) > 1:
                raise Unsupported(f"a buffer that is written and accessed as {sorted(storage.accesses)}")

    def declare(self, buffer: Any, data: Any) -> None:
        """``buffer`` is another name for ``data``, a pointer or the data of another buffer."""
        if isinstance(data, ir.Call):
            data = data.args[0]
        storage = self._storages[data]
        if storage.binding is None and split(str(buffer.dtype))[0] != storage.dtype:
            raise Unsupported(f"{storage.scope} memory of {storage.dtype} that is also used as {buffer.dtype}")
        self._storages[buffer] = storage

    def allocate(self, buffer: Any, name: str) -> tuple[str, str]:
        """Make a threadgroup or private array: its declaration and its scope, "shared" or "local"."""
        scope = str(buffer.scope())
        if scope not in ("shared", "local"):
            raise Unsupported(f"memory of scope {scope!r}")
        if not all(isinstance(extent, tirx.IntImm) for extent in buffer.shape):
            raise Unsupported(f"{scope} memory of a size that is not constant")
        dtype, lanes = split(str(buffer.dtype))
        self._storages[buffer] = Storage(name, scope, _known(dtype))
        size = math.prod(int(extent) for extent in buffer.shape) * lanes
        return f"{'shared ' if scope == 'shared' else ''}{GLSL[dtype]} {name}[{size}];", scope

    def find(self, buffer: Any) -> Storage:
        """Where a buffer's elements are."""
        return self._storages[buffer]

    def width(self, buffer: Any, index: Any) -> int:
        """How many elements at a time an access reads or writes: 4, 2 or 1."""
        storage = self._storages[buffer]
        if storage.binding is None:
            return 1
        dtype, lanes = split(str(buffer.dtype))
        width = self._widest(dtype, lanes, index)
        return width if not storage.written or len(storage.accesses) == 1 else 1

    def words(self, buffer: Any, index: Any) -> int:
        """How many words of 32 bits at a time can be read instead of smaller numbers: 4, 2, or 0 for none."""
        storage = self._storages[buffer]
        dtype, lanes = split(str(buffer.dtype))
        if storage.binding is None or storage.written or bits(dtype) >= 32:
            return 0
        return next((width for width in (4, 2) if self._fills(index, lanes, width * 32 // bits(dtype))), 0)

    def exact_quotient(self, index: Any, width: int) -> Any:
        """index / width for an ``index`` that is a multiple."""
        return self._analyzer.simplify(tirx.FloorDiv(index, tirx.IntImm(dtype_of(index), width)))

    def declarations(self, qualifiers: str) -> list[str]:
        """The storage buffers' GLSL, in the order of their bindings."""
        lines = defaultdict(list)
        for storage in self._storages.values():
            for dtype, width in sorted(storage.views):
                name = storage.view(dtype, width)
                element = stored(dtype) if width == 1 else vector(dtype, width)
                access = "" if storage.written else "readonly "
                if len(storage.views) == 1:
                    access += qualifiers
                lines[storage.binding, name] = (f"layout(std430, set = 0, binding = {storage.binding}) {access}buffer "
                                               f"{name}_buffer {{ {element} {name}[]; }};")
        return [lines[key] for key in sorted(lines)]

    def _widest(self, dtype: str, lanes: int, index: Any) -> int:
        """The widest vector for an access; ``lanes`` of an element of the buffer."""
        return next((width for width in (4, 2) if self._fills(index, lanes, width)), 1) if vector(dtype, 2) else 1

    def _fills(self, index: Any, lanes: int, width: int) -> bool:
        """Whether an access is to whole vectors of ``width`` elements."""
        base, count = contiguous(index, lanes)
        if base is None or count % width:
            return False
        multiple = self._analyzer.modular_set(base)
        return multiple.coeff % width == 0 and multiple.base % width == 0


def guarded(node: Any) -> list[Any]:
    """The parts of one of ``GUARDS`` that may not be evaluated, or again and again: they load scalars."""
    if isinstance(node, tirx.While):
        return [node.condition]
    if isinstance(node, tirx.Select):
        return [node.true_value, node.false_value]
    if isinstance(node, ir.Call):
        return list(node.args)[1:] if getattr(node.op, "name", "") == "prim.if_then_else" else []
    return [node.b]


def contiguous(index: Any, lanes: int = 1) -> tuple[Any, int]:
    """The first of the neighbouring elements that ``index`` names, and their number; None if there are no such.
    ``lanes``: elements of an element of the buffer."""
    if lanes > 1 and split(dtype_of(index))[1] == 1:
        return index * lanes, lanes
    if isinstance(index, tirx.Ramp) and isinstance(index.stride, tirx.IntImm) and int(index.stride.value) == 1:
        return (index.base * lanes if lanes > 1 else index.base), lanes * split(dtype_of(index))[1]
    return None, 1


def _known(dtype: str) -> str:
    if dtype not in GLSL:
        raise Unsupported(f"elements of type {dtype}")
    return dtype
