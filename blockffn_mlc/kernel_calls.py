"""``kernels.json``: the kernel calls of every function, read off the Relax graph, for what makes each by itself:
benchmarks and the check of a device."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import tvm
from tvm import relax

from schedules.builder import FACTORY, ORIGIN

from .compile import Graph
from .layers import LOGICAL_SHAPE

FILE = "kernels.json"

Names = Any  # what a Relax variable stands for: a tensor's or scalar's name, or a list of such
_CALLS = ("relax.call_tir", "relax.call_tir_inplace")
_WEIGHTS = "packed_params"  # what the frontend calls the parameter that holds all weights


def describe_kernels(graph: Graph) -> dict[str, Any]:
    """The contents of kernels.json (docs/artifact.md)."""
    kernels, weights = sorted(graph.kernels().items()), _weights_of_kernels(graph)
    return {
        "origins": {name: str(func.attrs[ORIGIN]) for name, func in kernels},
        "factories": {name: json.loads(str(func.attrs[FACTORY])) | {"weights": weights.get(name, [])}
                      for name, func in kernels},
        "elements": {name: math.prod(parameter.attrs.get(LOGICAL_SHAPE, parameter.shape))
                     for name, parameter in graph.parameters},
        "passes": {name: _describe_pass(graph, name) for name in graph.passes},
    }


def _weights_of_kernels(graph: Graph) -> dict[str, list[str | None]]:
    """By kernel what the inputs of its first call are, in whatever function: a weight's name, or None."""
    first: dict[str, list[str | None]] = {}
    for function in graph.relax_functions().values():
        names: dict[relax.Var, Any] = {param: [name for name, _ in graph.parameters]
                                       for param in function.params if param.name == _WEIGHTS}
        for binding in (binding for block in function.body.blocks for binding in block.bindings):
            value = binding.value
            if isinstance(value, relax.TupleGetItem) and value.tuple_value in names:
                names[binding.var] = names[value.tuple_value][value.index]
            elif isinstance(value, relax.Call) and value.op.name in _CALLS:
                first.setdefault(value.args[0].name_hint, [names.get(argument) for argument in value.args[1]])
    return first


def _describe_pass(graph: Graph, name: str) -> dict[str, Any]:
    """Calls in order; every tensor goes by the name of the weight, the pass's argument or the value it is."""
    func = next(f for var, f in graph.module.functions.items() if var.name_hint == name)
    names: dict[relax.Var, Names] = {}
    arguments: dict[str, Any] = {}
    for param in func.params:
        if param.name == _WEIGHTS:
            names[param] = [parameter for parameter, _ in graph.parameters]
        else:
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
    return str(value)  # a scalar: the name of the Shape that brought it, or a sum of such


def _flat(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else [name for field in names for name in _flat(field)]
