"""What devices there are, and why others are not."""

from __future__ import annotations

import os
from typing import Any

from blockffn_mlc.errors import UserError

from ..tvm_runtime import load_runtime, physical_cores
from .device import Accelerator, Cpu, load
from .native import RUNTIMES

_DRIVERS = {"opencl": "PoCL (apt install pocl-opencl-icd)",
            "vulkan": "lavapipe (apt install mesa-vulkan-drivers)"}  # for processors


def list_devices() -> list[dict[str, Any]]:
    """One entry per device: field ``device`` is its name for ``--device``, ``name`` its own, sizes are in bytes. A kind
    without devices has an entry with the reason in field ``unavailable``, as has a device whose driver fails; these
    come last of their kind, and have no number."""
    return [_cpu(), *(entry for kind in RUNTIMES for entry in _devices(kind))]


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
        return [{"device": kind, "unavailable": f"no {RUNTIMES[kind].title} driver has a device here; install the "
                                                f"graphics card's, or for the processor {_DRIVERS[kind]}"}]
    return [{"device": kind if "unavailable" in facts else f"{kind}:{index}", **facts}
            for index, facts in enumerate(found)]


def _from_tvm(kind: str) -> list[dict[str, Any]]:
    """The little that a runtime of TVM's own tells."""
    found = []
    while (device := Accelerator(kind, len(found))).exists:
        found.append({"name": device.product})
    return found
