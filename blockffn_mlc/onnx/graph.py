"""An ONNX graph under construction: nodes, constants, and weights that are read when they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Size = int | str  # an axis: its length, or the name of one that callers choose


@dataclass(frozen=True)
class Weight:
    """An initializer: ``read(checkpoint)`` makes the values of ``shape``, stored as ``dtype``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Any], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass
class Graph:
    """Values are known by their names. ``weight_dtype``: what weights are stored as; nodes compute in float32."""

    weight_dtype: str
    weights: list[Weight] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[bytes, onnx.TensorProto] = field(default_factory=dict)
    scope: str = ""
    """What the names of new values begin with: the module of the model that they belong to."""

    def input(self, name: str, dtype: str, *shape: Size) -> str:
        """Declare an argument of the model."""
        self.inputs.append(helper.make_tensor_value_info(name, _element_type(dtype), shape))
        return name

    def output(self, name: str, dtype: str, *shape: Size) -> None:
        """Declare a result of the model; ``result`` says what it is."""
        self.outputs.append(helper.make_tensor_value_info(name, _element_type(dtype), shape))

    def result(self, name: str, value: str) -> None:
        """``value`` is the output ``name``."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name))

    def weight(self, name: str, shape: Sequence[int], read: Callable[[Any], np.ndarray]) -> str:
        """A tensor of the checkpoint, as float32 value."""
        self.weights.append(Weight(name, tuple(shape), self.weight_dtype, read))
        return self.float32(name) if self.weight_dtype != "float32" else name

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """A small constant array; equal ones are one."""
        array = np.asarray(value, dtype)
        key = array.dtype.char.encode() + repr(array.shape).encode() + array.tobytes()
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def call(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or a list of names where there are several."""
        number = len(self.nodes)
        names = [f"{self.scope}{operator}_{number}" + (f".{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, f"{self.scope}{operator}_{number}", **attributes))
        return names[0] if outputs == 1 else names

    def float32(self, x: str) -> str:
        return self.call("Cast", x, to=TensorProto.FLOAT)

    def float16(self, x: str) -> str:
        return self.call("Cast", x, to=TensorProto.FLOAT16)

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps an axis, -1 is what remains."""
        return self.call("Reshape", x, self.constant(shape, "int64"))

    def split(self, x: str, *widths: int) -> list[str]:
        """Pieces of the last axis."""
        return self.call("Split", x, self.constant(widths, "int64"), outputs=len(widths), axis=-1)

    def transpose(self, x: str, *axes: int) -> str:
        return self.call("Transpose", x, perm=axes)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.call("Unsqueeze", x, self.constant(axes, "int64"))

    def concat(self, *values: str, axis: int) -> str:
        return self.call("Concat", *values, axis=axis)


def _element_type(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
