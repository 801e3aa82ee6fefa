"""What devices there are, and why others are not."""

from __future__ import annotations

import os
from typing import Any

from blockffn_mlc.errors import UserError

from ..tvm_runtime import load_runtime, physical_cores
from .device import KINDS, Accelerator, Cpu, load
from .native import RUNTIMES
from .provided import PROVIDED

_DRIVERS = {"opencl": "PoCL (apt install pocl-opencl-icd)",
            "vulkan": "lavapipe (apt install mesa-vulkan-drivers)"}  # for processors
# What TVM's DeviceAttrKind calls the facts that our runtimes tell.
_ATTRIBUTES = {"max_work_group_size": 1, "local_memory_bytes": 3, "version": 4, "compute_units": 7, "memory_bytes": 14}


def list_devices() -> list[dict[str, Any]]:
    """One entry per device: field ``device`` is its name for ``--device``, ``name`` its own, sizes are in bytes. A kind
    without devices has an entry with the reason in field ``unavailable``, as has a device whose driver fails; these
    come last of their kind, and have no number."""
    return [_cpu(), *(entry for kind in KINDS for entry in _devices(kind))]


def device_facts(name: str) -> dict[str, Any]:
    """The entry of device ``name`` ("opencl:0"); empty where there is none."""
    return next((entry for entry in list_devices() if entry["device"] == name), {})


def _cpu() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {"device": "cpu", "name": Cpu().product, "type": "CPU", "compute_units": physical_cores(),
            "memory_bytes": memory}


def _devices(kind: str) -> list[dict[str, Any]]:
    try:
        load(kind)
        describe = load_runtime().get_global_func(f"blockffn.{kind}.devices", allow_missing=True)
        found = [dict(facts) for facts in describe()] if describe is not None else _from_tvm(kind)
    except (UserError, RuntimeError) as error:
        return [{"device": kind, "unavailable": str(error)}]
    if not found:
        return [{"device": kind, "unavailable": _no_driver(kind)}]
    return [{"device": kind if "unavailable" in facts else f"{kind}:{index}", **facts}
            for index, facts in enumerate(found)]


def _no_driver(kind: str) -> str:
    if kind in PROVIDED:
        return f"{PROVIDED[kind].driver} driver has no {PROVIDED[kind].title} device here"
    return (f"no {RUNTIMES[kind].title} driver has a device here; install the graphics card's, or for the processor "
            f"{_DRIVERS[kind]}")


def _from_tvm(kind: str) -> list[dict[str, Any]]:
    """What a runtime of TVM's own tells."""
    found = []
    while (device := Accelerator(kind, len(found))).exists:
        facts = {name: device.attribute(number) for name, number in _ATTRIBUTES.items()}
        found.append({"name": device.product, **{name: value for name, value in facts.items() if value is not None}})
    return found
