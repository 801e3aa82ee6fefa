"""One device function as a compute shader, in TVM's conventions for Vulkan.

Pointers are storage buffers of descriptor set 0 in the order of the parameters; scalars are push constants in slots of
8 bytes, or, beyond 128 bytes (what every device has), members of a uniform buffer behind the others, in the same slots.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tvm import ir, tirx

from .buffers import Buffers
from .intrinsics import HELPERS
from .names import Names
from .statements import Statements
from .types import GLSL, convert, dtype_of
from .unsupported import Unsupported

PUSH_CONSTANT_BYTES = 128
_SLOT = 8
_HEADER = """#version 450
#extension GL_EXT_shader_explicit_arithmetic_types : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_control_flow_attributes : require"""
# A scalar's type, of those that TVM's launches pass -> what it is passed as: of sizes in int64 (see ``narrow``) the low
# half, which comes first, and the runtime is told, so that it can refuse larger ones.
_SLOTS = {"int32": "int32", "int64": "int32", "uint32": "uint32", "float32": "float32", "float64": "float64"}


@dataclass(frozen=True)
class Shader:
    """``arguments``: a type each, "handle" for pointers. ``tags``: what the launch passes behind them. ``uniform``:
    scalars are in a uniform buffer. ``source``: GLSL; equal for equal kernels, whatever their names."""

    name: str
    arguments: list[str]
    tags: list[str]
    uniform: bool
    source: str

    def text(self) -> str:
        """A comment with everything but the source, then the source."""
        facts = asdict(self)
        del facts["source"]
        return f"// Function: {self.name}\n// {json.dumps(facts)}\n{self.source}"

    @classmethod
    def parse(cls, text: str) -> list[Shader]:
        """The shaders of one or more joined ``text()``."""
        shaders = []
        for part in text.split("// Function: ")[1:]:
            _, facts, source = part.split("\n", 2)
            shaders.append(cls(**json.loads(facts.removeprefix("// ")), source=source))
        return shaders


def generate(name: str, func: tirx.PrimFunc) -> Shader:
    """The shader for a device function. Raises Unsupported."""
    pointers = [param for param in func.params if isinstance(param.ty, ir.PointerType)]
    scalars = [param for param in func.params if not isinstance(param.ty, ir.PointerType)]
    buffers = Buffers(func.body)
    statements = Statements(buffers)
    for binding, param in enumerate(pointers):
        buffers.add_parameter(param, statements.names.new(param.name), binding)
    buffers.find_uses()
    uniform = _SLOT * len(scalars) > PUSH_CONSTANT_BYTES
    interface = _scalars(scalars, uniform, len(pointers), statements)
    statements.visit(func.body)
    storage = buffers.declarations("restrict " if func.attrs.get("tirx.noalias") else "")
    helpers = [HELPERS[helper] for helper in sorted(statements.expressions.helpers)]
    group = ", ".join(f"local_size_{axis} = {size}" for axis, size in statements.group.items())
    source = "\n".join([_HEADER, f"layout({group}) in;", *storage, *interface, *statements.shared, *helpers,
                        "void main() {", *statements.lines, "}", ""])
    arguments = ["handle" if isinstance(param.ty, ir.PointerType) else _SLOTS[dtype_of(param)] for param in func.params]
    tags = [str(tag) for tag in func.attrs["tirx.kernel_launch_params"]]
    return Shader(name, arguments, tags, uniform, source)


def _scalars(params: list[Any], uniform: bool, binding: int, statements: Statements) -> list[str]:
    """Declare the scalar parameters; returns the declaration of the block that holds them."""
    members = []
    for slot, param in enumerate(params):
        dtype = dtype_of(param)
        if dtype not in _SLOTS:
            raise Unsupported(f"a scalar argument of type {dtype}")
        held = _SLOTS[dtype]
        members.append(f"layout(offset = {_SLOT * slot}) {GLSL[held]} argument_{slot};")
        _declare(statements.names, statements.lines, param, f"argument_{slot}", held)
    if not members:
        return []
    layout = f"layout(std140, set = 0, binding = {binding})" if uniform else "layout(push_constant)"
    return [f"{layout} uniform Arguments {{ {' '.join(members)} }};"]


def _declare(names: Names, lines: list[str], param: Any, member: str, held: str) -> None:
    glsl, name = names.define(param)
    dtype = "int32" if dtype_of(param) == "int64" else dtype_of(param)
    lines.append(f"  {glsl} {name} = {convert(member, held, dtype)};")
