"""How every kernel is described: TVM's IR builder, called from plain Python."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .tiles import Tiles

ORIGIN = "blockffn.origin"  # attribute that names the source file of a kernel
FACTORY = "blockffn.factory"  # attribute with the function that made a kernel and its arguments: JSON, see ``factory``


def factory(make: Callable[..., tvm.tirx.PrimFunc]) -> Callable[..., tvm.tirx.PrimFunc]:
    """Decorator of a function that makes a kernel: equal arguments give the same kernel, which carries the function's
    name and all arguments but the tiles: ``{"name": ..., "arguments": {...}}``."""
    signature = inspect.signature(make)

    @cache
    @wraps(make)
    def made(*args: Any, **kwargs: Any) -> tvm.tirx.PrimFunc:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if not isinstance(value, Tiles)}
        return make(*args, **kwargs).with_attr(FACTORY, json.dumps({"name": make.__name__, "arguments": arguments}))

    return made


class Kernel:
    """Collects the PrimFunc that a ``with kernel(...)`` block describes."""

    func: tvm.tirx.PrimFunc

    def __init__(self, index_dtype: str) -> None:
        self._index_dtype = index_dtype

    @staticmethod
    def tensor(shape: Sequence[Any], dtype: str = "float32") -> T.Buffer:
        """Declare the next tensor parameter."""
        return T.match_buffer(T.arg("tensor", T.handle()), tuple(shape), dtype)

    def scalar(self, name: str) -> tvm.tirx.Var:
        """Declare the next parameter as an int64 scalar; gives its value as an index."""
        value = T.arg(name, T.int64())
        return value if self._index_dtype == "int64" else T.bind(T.cast(value, self._index_dtype))

    def rows_var(self) -> tvm.tirx.Var:
        """A symbolic extent."""
        return getattr(T, self._index_dtype)()


@contextmanager
def kernel(origin: str, index_dtype: str = "int64") -> Iterator[Kernel]:
    """Describe one scheduled PrimFunc; read it from ``.func`` after the block. ``index_dtype``: of its symbolic
    extents, and of its scalars, which callers pass as int64, inside."""
    result = Kernel(index_dtype)
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, ORIGIN: origin})
            yield result
    result.func = builder.get()


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """``if condition:``"""
    with T.If(condition), T.Then():
        yield


def choose(condition: Any, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """``if condition: then() else: otherwise()``"""
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()
