"""TIR expressions as GLSL, lane by lane: the ALUs of today's GPUs are scalar, and TIR's vectors of 8 and 16 lanes have
no GLSL type. Only loads and stores stay wide, see ``buffers``."""

from __future__ import annotations

from typing import Any

from tvm import ir, tirx

from .buffers import Buffers, Storage, contiguous
from .intrinsics import DOUBLE, HELPERS, INTEGER_INTRINSICS, INTRINSICS
from .literals import floating, integer
from .names import Names
from .types import bits, convert, dtype_of, from_stored, known, reads_memory, reinterpret, split, vector
from .unsupported import Unsupported

_OPERATORS = {"Add": "+", "Sub": "-", "Mul": "*", "LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!=",
              "And": "&&", "Or": "||", "BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^", "LShift": "<<",
              "RShift": ">>"}
_COMPARISONS = ("LT", "LE", "GT", "GE", "EQ", "NE")
_DIVISIONS = {"Div": "/", "Mod": "tir_truncmod", "FloorDiv": "tir_floordiv", "FloorMod": "tir_floormod"}
_TRANSPARENT = ("tirx.likely", "prim.likely", "tirx.tvm_thread_invariant")


class Expressions:
    """Generates the expressions of one kernel. ``helpers``: the functions that the kernel calls, by name."""

    def __init__(self, buffers: Buffers, names: Names) -> None:
        self._buffers, self._names = buffers, names
        self._narrowing = names.narrowing
        self.helpers: set[str] = set()

    def bind(self, var: Any, value: Any) -> None:
        """Declare a variable and give it its value, now."""
        dtype, lanes = split(dtype_of(var))
        if dtype == "int64" and lanes == 1 and self._narrowing.is_index(value):
            var, value, dtype = self._narrowing.declare(var), self._narrowing.index(value), "int32"
        if dtype in ("int32", "int64") and lanes == 1:
            bound = self._names.analyzer.const_int_bound(value)
            self._names.bound(var, bound.min_value, bound.max_value)
        self._narrowing.note(var, value)
        self._names.set(var, [self._names.hoist(text, dtype, var.name) for text in self.lanes(value)])

    def scalar(self, expr: Any) -> str:
        """An expression of one lane."""
        (text,) = self.lanes(expr)
        return text

    def index(self, expr: Any) -> str:
        """An integer expression of one lane that counts elements, as GLSL's int."""
        return self.scalar(self._narrowing.index(expr))

    def lanes(self, expr: Any) -> list[str]:
        """The lanes of an expression, each in parentheses where that is needed."""
        kind = type(expr).__name__
        if kind in _OPERATORS:
            return self._operator(kind, expr.a, expr.b)
        if kind in _DIVISIONS:
            return self._division(kind, expr)
        visit = getattr(self, f"_visit_{kind}", None)
        if visit is None:
            raise Unsupported(f"expression {kind}")
        return visit(expr)

    def _operator(self, kind: str, a: Any, b: Any) -> list[str]:
        if kind in _COMPARISONS and self._narrowing.is_index(a) and self._narrowing.is_index(b):
            a, b = self._narrowing.index(a), self._narrowing.index(b)
        left = self.lanes(a)
        if kind in ("And", "Or"):
            with self._names.guarded():
                right = self.lanes(b)
        else:
            right = self.lanes(b)
        return [f"({x} {_OPERATORS[kind]} {y})" for x, y in zip(left, right)]

    def _division(self, kind: str, expr: Any) -> list[str]:
        dtype, _ = split(dtype_of(expr))
        pairs = list(zip(self.lanes(expr.a), self.lanes(expr.b)))
        if dtype.startswith("float"):
            if kind != "Div":
                raise Unsupported(f"{kind} of {dtype}")
            return [f"({x} / {y})" for x, y in pairs]
        symbol = "/" if kind.endswith("Div") else "%"
        if dtype.startswith("uint"):
            return [f"({x} {symbol} {y})" for x, y in pairs]
        bound = self._names.analyzer.const_int_bound
        if dtype == "int32" and all(bound(part).min_value >= 0 for part in (expr.a, expr.b)):
            # Without a sign, drivers make shifts and masks of powers of two.
            return [f"int(uint({x}) {symbol} uint({y}))" for x, y in pairs]
        if kind == "Div":
            return [f"({x} / {y})" for x, y in pairs]
        wide = _wide(dtype)
        self.helpers.add("tir_divisions_64" if wide == "int64" else "tir_divisions")
        return [convert(f"{_DIVISIONS[kind]}({convert(x, dtype, wide)}, {convert(y, dtype, wide)})", wide, dtype)
                for x, y in pairs]

    def _visit_Min(self, expr: Any) -> list[str]:
        return self._extreme("min", "<", expr)

    def _visit_Max(self, expr: Any) -> list[str]:
        return self._extreme("max", ">", expr)

    def _extreme(self, function: str, symbol: str, expr: Any) -> list[str]:
        dtype, _ = split(dtype_of(expr))
        pairs = list(zip(self.lanes(expr.a), self.lanes(expr.b)))
        if dtype in ("int64", "uint64"):
            return [f"({x} {symbol} {y} ? {x} : {y})" for x, y in pairs]
        wide = _wide(dtype)
        return [convert(f"{function}({convert(x, dtype, wide)}, {convert(y, dtype, wide)})", wide, dtype)
                for x, y in pairs]

    def _visit_Not(self, expr: Any) -> list[str]:
        return [f"(!{text})" for text in self.lanes(expr.a)]

    def _visit_BitwiseNot(self, expr: Any) -> list[str]:
        return [f"(~{text})" for text in self.lanes(expr.a)]

    def _visit_IntImm(self, expr: Any) -> list[str]:
        return [integer(int(expr.value), known(dtype_of(expr)))]

    def _visit_FloatImm(self, expr: Any) -> list[str]:
        return [floating(float(expr.value), known(dtype_of(expr)))]

    def _visit_Var(self, expr: Any) -> list[str]:
        narrow = self._narrowing.variable(expr)
        if narrow is not None:
            return [convert(name, "int32", "int64") for name in self._names.get(narrow)]
        return self._names.get(expr)

    def _visit_Cast(self, expr: Any) -> list[str]:
        target, _ = split(dtype_of(expr))
        source, _ = split(dtype_of(expr.value))
        value = expr.value
        if target == "float32" and _is_half_of_bits(value):
            # Half-precision numbers in integers: neither halves nor integers of 16 bits are needed to read them.
            number = value.args[0]
            if split(dtype_of(number))[0] == "uint32":
                return [f"unpackHalf2x16({text}).{half}" for text in self.lanes(number) for half in "xy"]
            # Of a number of 32 bits the function takes the lower half.
            if isinstance(number, tirx.Cast) and split(dtype_of(number.value))[0] in ("int32", "uint32"):
                number = number.value
            return [f"unpackHalf2x16({convert(text, split(dtype_of(number))[0], 'uint32')}).x"
                    for text in self.lanes(number)]
        if source == "int64" and target != "int64" and self._narrowing.is_index(value):
            value, source = self._narrowing.index(value), "int32"
        return [convert(text, source, known(target)) for text in self.lanes(value)]

    def _visit_Select(self, expr: Any) -> list[str]:
        return self._choose(expr.condition, expr.true_value, expr.false_value)

    def _choose(self, condition: Any, then: Any, otherwise: Any) -> list[str]:
        """GLSL evaluates only the operand that is chosen."""
        conditions = self.lanes(condition)
        with self._names.guarded():
            values, others = self.lanes(then), self.lanes(otherwise)
        conditions = conditions * (len(values) // len(conditions))
        return [f"({c} ? {x} : {y})" for c, x, y in zip(conditions, values, others)]

    def _visit_Ramp(self, expr: Any) -> list[str]:
        dtype, lanes = split(dtype_of(expr))
        base, stride = (self._names.once(self.scalar(part), dtype) for part in (expr.base, expr.stride))
        return [f"({base} + {integer(lane, dtype)} * {stride})" for lane in range(lanes)]

    def _visit_Broadcast(self, expr: Any) -> list[str]:
        dtype, lanes = split(dtype_of(expr))
        return [self._names.once(self.scalar(expr.value), dtype)] * lanes

    def _visit_Shuffle(self, expr: Any) -> list[str]:
        lanes = [text for part in expr.vectors for text in self.lanes(part)]
        return [lanes[int(index)] for index in expr.indices]

    def _visit_TensorLoad(self, expr: Any) -> list[str]:
        if len(expr.indices) != 1:
            raise Unsupported(f"a buffer of {len(expr.indices)} dimensions")
        dtype, lanes = split(str(expr.source.dtype))
        width = 1 if self._names.guards else self._buffers.width(expr.source, expr.indices[0])
        storage = self._buffers.find(expr.source)
        if width == 1:
            from_memory = from_stored if storage.binding is not None else lambda text, dtype: text
            return [from_memory(f"{storage.view(dtype, 1)}[{index}]", dtype)
                    for index in self.elements(expr.indices[0], lanes)]
        return self._load(storage, dtype, width, self.wide_elements(expr.indices[0], lanes, width))

    def _load(self, storage: Storage, dtype: str, width: int, places: list[str]) -> list[str]:
        """Vectors of ``width`` numbers of type ``dtype``."""
        values = []
        for place in places:
            name = self._names.new("t")
            self._names.emit(f"{vector(dtype, width)} {name} = {storage.view(dtype, width)}[{place}];")
            values += [f"{name}.{component}" for component in "xyzw"[:width]]
        return values

    def elements(self, index: Any, lanes: int) -> list[str]:
        """The numbers of the elements of an access; ``lanes``: of an element of the buffer."""
        texts = self.lanes(self._narrowing.index(index))
        return texts if lanes == 1 else [f"({text} * {lanes} + {lane})" for text in texts for lane in range(lanes)]

    def wide_elements(self, index: Any, lanes: int, width: int) -> list[str]:
        """The same in elements of ``width``."""
        first, count = contiguous(self._narrowing.index(index), lanes)
        place = self._names.once(self.scalar(self._buffers.exact_quotient(first, width)), "int32")
        return [place if i == 0 else f"({place} + {i})" for i in range(count // width)]

    def _visit_Let(self, expr: Any) -> list[str]:
        if self._names.repeats or self._names.guards and reads_memory(expr.value):
            self._narrowing.note(expr.var, expr.value)
            self._names.set(expr.var, self.lanes(expr.value))
        else:
            self.bind(expr.var, expr.value)
        return self.lanes(expr.body)

    def _visit_Call(self, expr: Any) -> list[str]:
        name, args = str(expr.op.name), list(expr.args)
        if name in _TRANSPARENT:
            return self.lanes(args[0])
        if name == "prim.if_then_else":
            return self._choose(*args)
        if name == "tirx.reinterpret":
            return self._reinterpret(dtype_of(expr), args[0])
        if name in ("tirx.call_pure_extern", "tirx.call_extern"):
            name, args = str(args[0].value), args[1:]
        return self._intrinsic(name.removeprefix("tirx.").removeprefix("prim."), dtype_of(expr), args)

    def _intrinsic(self, name: str, dtype: str, args: list[Any]) -> list[str]:
        result, _ = split(dtype)
        source, _ = split(dtype_of(args[0])) if args else ("", 1)
        if name in INTEGER_INTRINSICS and source in ("int32", "uint32"):
            function, compute, gives = INTEGER_INTRINSICS[name], "uint32", "int32"
        elif name in INTRINSICS and (source in ("float32", "float16") or source == "float64" and name in DOUBLE):
            function = INTRINSICS[name]
            compute = "float64" if source == "float64" else "float32"
            gives = result if result == "bool" else compute
        else:
            raise Unsupported(f"function {name} of {source or 'nothing'}")
        if function in HELPERS:
            self.helpers.add(function)
        columns = [[convert(text, source, compute) for text in self.lanes(arg)] for arg in args]
        return [convert(f"{function}({', '.join(column)})", gives, result) for column in zip(*columns)]

    def _reinterpret(self, dtype: str, value: Any) -> list[str]:
        (source, _), (target, _) = split(dtype_of(value)), split(dtype)
        if "float64" in (source, target) or bits(source) != bits(target) and 64 in (bits(source), bits(target)):
            raise Unsupported(f"reinterpret of {dtype_of(value)} as {dtype}")
        if target == "uint32" and isinstance(value, ir.TensorLoad) and not self._names.guards:
            (index,), element = value.indices, split(str(value.source.dtype))[1]
            if width := self._buffers.words(value.source, index):
                places = self.wide_elements(index, element, width * 32 // bits(source))
                return self._load(self._buffers.find(value.source), target, width, places)
        return reinterpret(self.lanes(value), source, target)


def _wide(dtype: str) -> str:
    """The smallest type that all devices compute with and that holds ``dtype``."""
    return {"float16": "float32", "int8": "int32", "int16": "int32", "uint8": "uint32", "uint16": "uint32"}.get(
        dtype, dtype)


def _is_half_of_bits(expr: Any) -> bool:
    return (isinstance(expr, ir.Call) and str(expr.op.name) == "tirx.reinterpret"
            and split(dtype_of(expr))[0] == "float16" and split(dtype_of(expr.args[0]))[0] in ("uint16", "uint32"))
