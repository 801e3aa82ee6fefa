"""``kernels.json``: the kernel calls of a pass, read off the Relax graph, for benchmarks that make each by itself."""

from __future__ import annotations

import math
import re
from typing import Any

import tvm
from tvm import relax

from .compile import Graph
from .layers import LOGICAL_SHAPE

FILE = "kernels.json"
PASSES = ("forward", "forward_dense")

Names = Any  # what a Relax variable stands for: a tensor's or scalar's name, or a list of such
_CALLS = ("relax.call_tir", "relax.call_tir_inplace")


def describe_kernels(graph: Graph, origin: str) -> dict[str, Any]:
    """The contents of kernels.json (docs/artifact.md). ``origin``: the attribute that names a kernel's source."""
    return {
        "origins": {name: str(func.attrs[origin]) for name, func in sorted(graph.kernels().items())},
        "elements": {name: math.prod(parameter.attrs.get(LOGICAL_SHAPE, parameter.shape))
                     for name, parameter in graph.parameters},
        "passes": {name: _describe_pass(graph, name) for name in PASSES},
    }


def _describe_pass(graph: Graph, name: str) -> dict[str, Any]:
    """Calls in order; every tensor goes by the name of the weight, the pass's argument or the value it is."""
    func = next(f for var, f in graph.module.functions.items() if var.name_hint == name)
    *params, weights = func.params
    names: dict[relax.Var, Names] = {weights: [parameter for parameter, _ in graph.parameters]}
    arguments: dict[str, Any] = {}
    for param in params:
        names[param] = _declare(param.name, param.ty, arguments)
    values: dict[str, Any] = {}
    calls = []
    for block in func.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and value.op.name in _CALLS:
                inputs = [_lookup(names, argument) for argument in value.args[1]]
                if value.op.name == "relax.call_tir_inplace":
                    written = [inputs[int(i)] for i in value.attrs.inplace_indices]
                    results, names[binding.var] = [], written[0] if len(written) == 1 else written
                else:
                    written = []
                    names[binding.var] = _declare(binding.var.name, binding.var.ty, values)
                    results = _flat(names[binding.var])
                calls.append({"kernel": value.args[0].name_hint, "inputs": inputs, "results": results,
                              "in_place": written})
            else:
                names[binding.var] = _lookup(names, value)
    return {"arguments": arguments, "values": values, "calls": calls, "results": _lookup(names, func.body.body)}


def _declare(name: str, kind: Any, tensors: dict[str, Any]) -> Names:
    """Enter a variable's tensors under their names; a scalar (a Shape of one) is described as such."""
    if isinstance(kind, relax.TensorType):
        tensors[name] = {"shape": [_extent(size) for size in kind.shape], "dtype": str(kind.dtype)}
    elif isinstance(kind, relax.ShapeType):
        tensors[name] = {"shape": None, "dtype": "int64"}
    else:
        return [_declare(f"{name}.{i}", field, tensors) for i, field in enumerate(kind.fields)]
    return name


def _extent(size: Any) -> int | str:
    """A number, or Python's notation of an expression over the pass's symbolic extents."""
    return int(size) if isinstance(size, tvm.tirx.IntImm) else re.sub(r"T\.int64\((\d+)\)", r"\1", str(size))


def _lookup(names: dict[relax.Var, Names], value: Any) -> Names:
    if isinstance(value, relax.TupleGetItem):
        return _lookup(names, value.tuple_value)[value.index]
    if isinstance(value, relax.Tuple):
        return [_lookup(names, field) for field in value.fields]
    if value in names:
        return names[value]
    return str(value)  # a scalar, by the name of the Shape that brought it


def _flat(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else [name for field in names for name in _flat(field)]
