"""One file per target family; ``find_target`` resolves a name given to ``--target``, ``list_targets`` says what there
is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import tvm_ffi

from blockffn_mlc.errors import UserError
from blockffn_mlc.target import Target

from .android import android_target
from .cpu import aarch64_target, cpu_target
from .cuda import CUDA_COMPILER, cuda_target
from .metal import iphone_target, metal_target
from .opencl import opencl_target
from .tools import (
    ANDROID_LINKER,
    ARM_LINKER,
    COMPILER,
    MAC_LINKER,
    NINJA,
    OPENCL_DRIVER,
    OPENCL_HEADERS,
    VULKAN_DRIVER,
    VULKAN_HEADERS,
    Tool,
)
from .vulkan import vulkan_android_target, vulkan_target
from .vulkan.spirv import GLSLC

__all__ = ["TARGETS", "Target", "find_target", "find_targets", "list_targets"]


@dataclass(frozen=True)
class Entry:
    """A target by name: what it is, how to make it, what it needs. ``options``: which of ``find_target``'s ``make``
    takes."""

    about: str
    make: Callable[..., Target]
    tools: tuple[Tool, ...]
    options: tuple[str, ...] = ()


TARGETS = {
    "cpu": Entry("this machine's processor, or --cpu NAME", cpu_target, (COMPILER,), options=("cpu",)),
    "cpu:aarch64": Entry("64-bit ARM Linux, or --cpu NAME there", aarch64_target, (ARM_LINKER,), options=("cpu",)),
    "opencl": Entry("an OpenCL device of this machine", opencl_target,
                    (COMPILER, OPENCL_DRIVER, NINJA, OPENCL_HEADERS)),
    "android": Entry("phones with an Adreno GPU", partial(android_target, "android", "adreno"), (ANDROID_LINKER,)),
    "android:mali": Entry("phones with a Mali GPU", partial(android_target, "android:mali", "mali"),
                          (ANDROID_LINKER,)),
    "android:generic": Entry("phones with any OpenCL 1.2 GPU", partial(android_target, "android:generic", "generic"),
                             (ANDROID_LINKER,)),
    "vulkan": Entry("a Vulkan 1.1 device of this machine", vulkan_target,
                    (COMPILER, GLSLC, VULKAN_DRIVER, NINJA, VULKAN_HEADERS), options=("probe",)),
    "cuda": Entry("NVIDIA's GPUs, or those of --arch sm_80,...", partial(cuda_target, "cuda"),
                  (COMPILER, CUDA_COMPILER), options=("architectures",)),
    "cuda:mma": Entry("the same, with tensor cores for half precision; experimental",
                      partial(cuda_target, "cuda:mma", tensor_cores=True), (COMPILER, CUDA_COMPILER),
                      options=("architectures",)),
    "metal": Entry("Macs with Apple's processors", metal_target, (MAC_LINKER,)),
    "iphone": Entry("iPhones and iPads", iphone_target, ()),
    "vulkan:android": Entry("phones with any Vulkan 1.1 GPU", vulkan_android_target, (ANDROID_LINKER, GLSLC)),
}
ALIASES = {"android:adreno": "android"}

for raised in (KeyboardInterrupt, UserError):  # in Python that TVM calls: they come back through it as what they are
    tvm_ffi.register_error(raised.__name__, raised)


def find_target(name: str, cpu: str = "native", probe: bool = False, architectures: str | None = None) -> Target:
    """Resolve one name. ``cpu``: the value of ``--cpu``. ``probe``: where the target can, take the limits of this
    machine's device. ``architectures``: the value of ``--arch``. Raises UserError with the names there are."""
    entry = TARGETS.get(ALIASES.get(name, name))
    if entry is None:
        raise UserError(f"--target {name}: unknown target; choose one of {', '.join([*TARGETS, *ALIASES])}")
    given = {"cpu": cpu, "probe": probe, "architectures": architectures}
    return entry.make(**{option: given[option] for option in entry.options})


def find_targets(names: str, cpu: str = "native", probe: bool = False,
                 architectures: str | None = None) -> list[Target]:
    """Resolve ``--target``: names separated by commas, each target once; options as for ``find_target``. Raises
    UserError, also for an option that none of them takes."""
    if "" in (listed := names.split(",")):
        raise UserError(f"--target {names!r}: a name is empty; expected names separated by single commas, of "
                        f"{', '.join([*TARGETS, *ALIASES])}")
    targets = {target.name: target for target in (find_target(name, cpu, probe, architectures) for name in listed)}

    def able(option: str) -> str:
        return ", ".join(name for name, entry in TARGETS.items() if option in entry.options)

    taken = {option for name in targets for option in TARGETS[name].options}
    if cpu != "native" and "cpu" not in taken:
        raise UserError(f"--cpu {cpu}: target {names} is not a processor; leave --cpu out or add --target cpu")
    if probe and "probe" not in taken:
        raise UserError(f"--device-limits probe: target {names} has fixed limits; leave it out or add --target "
                        f"{able('probe')}")
    if architectures is not None and "architectures" not in taken:
        raise UserError(f"--arch {architectures}: target {names} has no architectures; leave it out or add --target "
                        f"{able('architectures')}")
    return list(targets.values())


def list_targets() -> dict[str, dict[str, Any]]:
    """What ``--list-targets`` tells, by name: ``about``, ``aliases``, ``tools`` (each with ``name``, ``purpose``,
    ``found``: where, or null, and ``install``) and ``ready``: whether it can be built here."""
    return {name: {
        "about": entry.about, "aliases": [alias for alias, of in ALIASES.items() if of == name],
        "tools": [{"name": tool.name, "purpose": tool.purpose, "found": tool.find(), "install": tool.install}
                  for tool in entry.tools],
        "ready": all(tool.find() for tool in entry.tools if tool.to_build),
    } for name, entry in TARGETS.items()}
