"""TIR statements as GLSL."""

from __future__ import annotations

from typing import Any

from tvm import ir, tirx

from .buffers import Buffers
from .expressions import Expressions
from .names import Names
from .types import dtype_of, split, to_stored, vector
from .unsupported import Unsupported

_GROUP_INDEX = {"blockIdx": "gl_WorkGroupID", "threadIdx": "gl_LocalInvocationID"}
_HINTS = ("storage_alignment", "reduce_scope")  # attributes without effect on what is computed
_FAR = 2**31 - 1


class Statements:
    """Generates the body of one kernel. ``lines``: of ``main``; ``shared``: declarations of threadgroup memory;
    ``group``: work-items of a group along x, y and z."""

    def __init__(self, buffers: Buffers) -> None:
        self.lines: list[str] = []
        self.shared: list[str] = []
        self.group = {"x": 1, "y": 1, "z": 1}
        self.names = Names(self._emit)
        self.expressions = Expressions(buffers, self.names)
        self._buffers = buffers
        self._depth = 1

    def _emit(self, line: str) -> None:
        self.lines.append("  " * self._depth + line)

    def visit(self, stmt: Any) -> None:
        """Generate a statement."""
        visit = getattr(self, f"_visit_{type(stmt).__name__}", None)
        if visit is None:
            raise Unsupported(f"statement {type(stmt).__name__}")
        visit(stmt)

    def _block(self, head: str, stmt: Any, end: str = "}") -> None:
        self._emit(head)
        self._depth += 1
        self.visit(stmt)
        self._depth -= 1
        if end:
            self._emit(end)

    def _visit_SeqStmt(self, stmt: Any) -> None:
        for part in stmt.seq:
            self.visit(part)

    def _visit_AttrStmt(self, stmt: Any) -> None:
        key = str(stmt.attr_key)
        if key == "thread_extent":
            self._launch(stmt.node, stmt.value)
        elif not key.startswith("pragma_") and key not in _HINTS:
            raise Unsupported(f"attribute {key}")
        self.visit(stmt.body)

    def _launch(self, axis: Any, extent: Any) -> None:
        """Declare the index of the group or of the item in it; several launches of one axis are the same."""
        kind, _, dimension = str(axis.thread_tag).partition(".")
        if kind not in _GROUP_INDEX:
            raise Unsupported(f"launch over {axis.thread_tag}")
        if kind == "threadIdx":
            if not isinstance(extent, tirx.IntImm):
                raise Unsupported(f"a work-group whose size ({axis.thread_tag}) is not constant")
            self.group[dimension] = int(extent.value)
        glsl, name = self.names.define(axis.var)
        last = int(extent.value) - 1 if isinstance(extent, tirx.IntImm) else _FAR
        self.names.bound(axis.var, 0, last)
        self._emit(f"{glsl} {name} = {glsl}({_GROUP_INDEX[kind]}.{dimension});")

    def _visit_DeclBuffer(self, stmt: Any) -> None:
        self._buffers.declare(stmt.buffer, stmt.data)

    def _visit_AllocBuffer(self, stmt: Any) -> None:
        declaration, scope = self._buffers.allocate(stmt.buffer, self.names.new(stmt.buffer.name))
        if scope == "shared":
            self.shared.append(declaration)
        else:
            self._emit(declaration)

    def _visit_Bind(self, stmt: Any) -> None:
        self.expressions.bind(stmt.var, stmt.value)

    def _visit_BufferStore(self, stmt: Any) -> None:
        if len(stmt.indices) != 1:
            raise Unsupported(f"a buffer of {len(stmt.indices)} dimensions")
        dtype, lanes = split(str(stmt.buffer.dtype))
        storage, width = self._buffers.find(stmt.buffer), self._buffers.width(stmt.buffer, stmt.indices[0])
        values = self.expressions.lanes(stmt.value)
        if width > 1:
            places = self.expressions.wide_elements(stmt.indices[0], lanes, width)
            for i, place in enumerate(places):
                parts = ", ".join(values[i * width:(i + 1) * width])
                self._emit(f"{storage.view(dtype, width)}[{place}] = {vector(dtype, width)}({parts});")
            return
        if len(values) > 1:  # what lanes read from the buffer is what was there before
            values = [self.names.hoist(text, dtype) for text in values]
        for index, value in zip(self.expressions.elements(stmt.indices[0], lanes), values):
            self._emit(f"{storage.view(dtype, 1)}[{index}] = "
                       f"{to_stored(value, dtype) if storage.binding is not None else value};")

    def _visit_Evaluate(self, stmt: Any) -> None:
        value = stmt.value
        if isinstance(value, ir.Call) and str(value.op.name) == "tirx.tvm_storage_sync":
            scope = str(value.args[0].value)
            if scope != "shared":
                raise Unsupported(f"a barrier of scope {scope!r}")
            self._emit("barrier();")
        elif not isinstance(value, tirx.IntImm):  # TVM's no-op
            raise Unsupported(f"a call of {getattr(getattr(value, 'op', value), 'name', value)} as a statement")

    def _visit_For(self, stmt: Any) -> None:
        if stmt.kind not in (tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED):
            raise Unsupported(f"a loop of kind {tirx.ForKind(stmt.kind).name.lower()}")
        names, expressions, narrow = self.names, self.expressions, self.names.narrowing.index
        first, extent = narrow(stmt.min), narrow(stmt.extent)
        low, high = (names.analyzer.const_int_bound(value) for value in (first, first + extent))
        start = expressions.scalar(first)
        # TIR evaluates a loop's extent once.
        end = expressions.scalar(names.analyzer.simplify(first + extent))
        if not end.isdigit():
            end = names.hoist(end, dtype_of(extent), "end")
        step = "++{}" if stmt.step is None else "{} += " + expressions.index(stmt.step)
        glsl, name = names.define(stmt.loop_var)
        names.bound(stmt.loop_var, low.min_value, max(high.max_value - 1, low.min_value))
        unroll = "[[unroll]] " if stmt.kind == tirx.ForKind.UNROLLED else ""
        self._block(f"{unroll}for ({glsl} {name} = {start}; {name} < {end}; {step.format(name)}) {{", stmt.body)

    def _visit_While(self, stmt: Any) -> None:
        with self.names.repeated():
            condition = self.expressions.scalar(stmt.condition)
        self._block(f"while ({condition}) {{", stmt.body)

    def _visit_IfThenElse(self, stmt: Any) -> None:
        head = f"if ({self.expressions.scalar(stmt.condition)}) {{"
        if stmt.else_case is None:
            self._block(head, stmt.then_case)
        else:
            self._block(head, stmt.then_case, "} else {")
            self._depth += 1
            self.visit(stmt.else_case)
            self._depth -= 1
            self._emit("}")

    def _visit_Break(self, stmt: Any) -> None:
        self._emit("break;")

    def _visit_Continue(self, stmt: Any) -> None:
        self._emit("continue;")
