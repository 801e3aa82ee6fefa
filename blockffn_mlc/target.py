"""What the compiler needs to know of a target."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import tvm

from schedules.tiles import CpuTiles


@dataclass(frozen=True)
class Target:
    """``name``: as given to ``--target``. ``host``: what the library runs on, for people.
    ``kernels`` and ``tiles``: the kernel family and its numbers."""

    name: str
    host: str
    tvm_target: tvm.target.Target
    kernels: ModuleType
    tiles: CpuTiles
    library_suffix: str = ".so"
