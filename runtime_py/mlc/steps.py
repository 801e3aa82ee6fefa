"""A step of the check: what the engine does, and how it went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One thing that the engine does: whether it went as it should, and a figure or what is wrong."""

    name: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Wrong(Exception):
    """A step's result is not what it should be."""


def attempt(name: str, step: Callable[[], str]) -> Step:
    """Take a step."""
    try:
        return Step(name, True, step())
    except Wrong as wrong:
        return Step(name, False, str(wrong))
    except (RuntimeError, AttributeError, ValueError, TypeError, KeyError, OSError) as error:
        lines = str(error).strip().splitlines()
        return Step(name, False, f"fails: {lines[0] if lines else type(error).__name__}")
