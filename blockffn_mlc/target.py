"""What the compiler needs to know of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import tvm

from schedules.tiles import CpuTiles, GpuTiles

if TYPE_CHECKING:
    from targets.limits import Limits


@dataclass(frozen=True)
class Form:
    """One way to package a library: a file with ``suffix``. ``link(path, objects)`` writes it and raises RuntimeError
    with the linker's words; ``check()`` raises UserError when what it needs is missing. ``system_lib``: objects for an
    app to be linked with, which register themselves under a prefix."""

    suffix: str
    link: Callable[..., None]
    check: Callable[[], None]
    system_lib: bool = False


def export_library(executable: Any, path: str, link: Callable[..., None]) -> None:
    """TVM's way."""
    executable.export_library(path, fcompile=link)


@dataclass(frozen=True)
class Target:
    """``name``: as given to ``--target``. ``host``: what the library's own code runs on, "MACHINE PROCESSOR, UNIT".
    ``kernels`` and ``tiles``: the kernel family and its numbers. ``forms``: the library's packages, the one that our
    runtime loads first. ``limits``: what a device allows (None: processors, which allow anything). ``prefill_chunk``:
    tokens per pass unless the user says otherwise. ``files``: what else the artifact holds, string.Templates by name.
    ``export(executable, path, link)`` writes a library with a form's ``link``. ``mlc_device``: what MLC's packaging
    calls the devices, None where it makes no app for them. ``note``: what a build says beforehand."""

    name: str
    host: str
    tvm_target: tvm.target.Target
    kernels: ModuleType
    tiles: CpuTiles | GpuTiles
    forms: tuple[Form, ...]
    limits: Limits | None = None
    prefill_chunk: int = 512
    files: Mapping[str, str] = field(default_factory=dict)
    export: Callable[[Any, str, Callable[..., None]], None] = export_library
    mlc_device: str | None = None
    note: str | None = None

    def check_tools(self) -> None:
        """Raise UserError when this machine lacks what it takes to package a library."""
        for form in self.forms:
            form.check()

    @property
    def serves_mlc(self) -> bool:
        """Whether libraries have the functions of MLC's engine unless the user says otherwise: where it has apps, or
        runs on the device and chooses tokens there."""
        return self.mlc_device is not None or str(self.tvm_target.kind) in ("cuda", "metal", "vulkan")

    @property
    def file_name(self) -> str:
        """The name in files and folders."""
        return self.name.replace(":", "-")

    @property
    def multiplies_bytes(self) -> bool:
        """Whether kernels may take 8-bit activations."""
        return isinstance(self.tiles, CpuTiles) and bool(self.tiles.dot)
