"""One file per target family; ``find_target`` resolves the name given to ``--target``."""

from __future__ import annotations

from blockffn_mlc.errors import UserError
from blockffn_mlc.target import Target

from .cpu import cpu_target

__all__ = ["TARGETS", "Target", "find_target"]

# name -> what it is
TARGETS = {"cpu": "this machine's processor, or --cpu NAME; needs a C++ compiler to link the library"}


def find_target(name: str, cpu: str = "native") -> Target:
    """Resolve ``--target``. Raises UserError with the names there are."""
    if name not in TARGETS:
        raise UserError(f"--target {name}: unknown target; choose one of {', '.join(TARGETS)}")
    return cpu_target(cpu)
