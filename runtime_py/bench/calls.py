"""``kernels.json``: which kernels a pass calls, in order, and on which tensors (docs/artifact.md)."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockffn_mlc.errors import UserError

from ..jsonfile import read_json, required

FILE = "kernels.json"
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
              ast.Mod: operator.mod}


@dataclass(frozen=True)
class Tensor:
    """``shape``: numbers, and expressions over n (tokens) and m (rows of logits); None for a scalar."""

    shape: tuple[int | str, ...] | None
    dtype: str

    def extents(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given n and m."""
        return tuple(size if isinstance(size, int) else _evaluate(size, sizes) for size in self.shape or ())

    def depends_on(self, name: str) -> bool:
        """Whether an extent mentions the symbolic size ``name``."""
        return any(isinstance(size, str) and name in _names(size) for size in self.shape or ())


@dataclass(frozen=True)
class Call:
    """One call of a kernel: ``inputs``, then ``results``, by name. ``in_place``: the inputs that it writes."""

    kernel: str
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    in_place: tuple[str, ...]


@dataclass(frozen=True)
class Pass:
    """The calls of one function of the library. ``arguments``: what it is given; ``values``: what its kernels make;
    ``results``: their names, nested as the function returns them. Every other name is a weight's."""

    arguments: dict[str, Tensor]
    values: dict[str, Tensor]
    calls: tuple[Call, ...]
    results: Any

    @property
    def logits(self) -> str:
        """Of ``forward`` and ``forward_dense``."""
        return self.results[0]

    @property
    def scores(self) -> tuple[str, ...]:
        """One per layer; of ``forward`` and ``forward_dense``."""
        return tuple(self.results[1])


@dataclass(frozen=True)
class Factory:
    """What made a kernel: the function's ``name`` in ``schedules.cpu`` or ``schedules.gpu``, and its ``arguments``
    without the tiles. ``weights``: of each input of the kernel's first call the weight's name, None for others."""

    name: str
    arguments: dict[str, Any]
    weights: tuple[str | None, ...]


@dataclass(frozen=True)
class Description:
    """``origins``: source module by kernel. ``factories``: by kernel. ``elements``: numbers in a weight, before
    packing. ``passes``: by the name of the library's function."""

    origins: dict[str, str]
    factories: dict[str, Factory]
    elements: dict[str, int]
    passes: dict[str, Pass]

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read an artifact's description. Raises UserError when it has none, or an unreadable one."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"{path}: no such file; it describes the kernels: rebuild the artifact with build.py")
        raw = read_json(path)
        origins, elements, passes = (required(raw, name, dict, path) for name in ("origins", "elements", "passes"))
        try:
            factories = {name: Factory(made["name"], made["arguments"], tuple(made["weights"]))
                         for name, made in raw["factories"].items()}
            return cls(origins, factories, elements, {name: _pass(values) for name, values in passes.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a description of kernel calls ({type(error).__name__}: {error}); rebuild the "
                            "artifact with build.py") from None


def _pass(raw: dict[str, Any]) -> Pass:
    calls = tuple(Call(call["kernel"], tuple(call["inputs"]), tuple(call["results"]), tuple(call["in_place"]))
                  for call in raw["calls"])
    return Pass(_tensors(raw["arguments"]), _tensors(raw["values"]), calls, raw["results"])


def _tensors(raw: dict[str, Any]) -> dict[str, Tensor]:
    return {name: Tensor(None if tensor["shape"] is None else tuple(tensor["shape"]), tensor["dtype"])
            for name, tensor in raw.items()}


def _evaluate(text: str, sizes: Mapping[str, int]) -> int:
    """Integer arithmetic over names; anything else is a ValueError."""
    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in sizes:
            return sizes[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"extent {text!r}: expected integer arithmetic over {', '.join(sizes)}")

    return value(ast.parse(text, mode="eval").body)


def _names(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
