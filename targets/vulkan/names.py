"""The variables of a kernel in GLSL, and which values are computed before the statement that needs them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.sym.analyzer import Analyzer, ConstIntBound

from .narrow import Narrowing
from .types import GLSL, dtype_of, known

_SIMPLE = re.compile(r"[\w.]+")


class Names:
    """``emit(line)`` writes a statement before the current one. ``analyzer`` knows what values the integer variables
    take, ``narrowing`` which of them are held in 32 bits."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self.emit = emit
        self.analyzer = Analyzer()
        self.narrowing = Narrowing(self.analyzer)
        self.guards = False  # what is generated may not be evaluated at all: no load is hoisted
        self.repeats = False  # or is evaluated again and again: nothing is hoisted
        self._lanes: dict[Any, list[str]] = {}
        self._count = 0

    def new(self, hint: str) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{re.sub('[^A-Za-z0-9]+', '_', hint).strip('_') or 'v'}_{self._count}".removeprefix("gl_")

    def define(self, var: Any) -> tuple[str, str]:
        """Declare a scalar variable: its GLSL type and name. An int64 variable is held in 32 bits."""
        if dtype_of(var) == "int64":
            var = self.narrowing.declare(var)
        name = self.new(var.name)
        self._lanes[var] = [name]
        return GLSL[known(dtype_of(var))], name

    def set(self, var: Any, lanes: list[str]) -> None:
        """Say what a variable stands for."""
        self._lanes[var] = lanes

    def get(self, var: Any) -> list[str]:
        """What it stands for, by lane."""
        return self._lanes[var]

    def bound(self, var: Any, low: int, high: int) -> None:
        """Tell what values an integer variable takes."""
        held = self.narrowing.variable(var)
        self.analyzer.update(var if held is None else held, ConstIntBound(low, high), True)

    def hoist(self, text: str, dtype: str, hint: str = "t") -> str:
        """Evaluate ``text`` once, before the current statement."""
        name = self.new(hint)
        self.emit(f"{GLSL[dtype]} {name} = {text};")
        return name

    def once(self, text: str, dtype: str) -> str:
        """``text`` for use in several lanes."""
        return text if self.guards or _SIMPLE.fullmatch(text) else self.hoist(text, dtype)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What is generated within may not be evaluated at all."""
        outside, self.guards = self.guards, True
        yield
        self.guards = outside

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """What is generated within is evaluated again and again."""
        self.repeats = True
        with self.guarded():
            yield
        self.repeats = False
