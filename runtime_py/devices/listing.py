"""What devices there are, and why others are not."""

from __future__ import annotations

import os
from typing import Any

from blockffn_mlc.errors import UserError

from ..tvm_runtime import load_runtime, physical_cores
from .device import Accelerator, Cpu, load

_NO_DRIVER = ("no OpenCL driver has a device here; install the graphics card's, or for the processor PoCL "
              "(apt install pocl-opencl-icd)")


def list_devices() -> list[dict[str, Any]]:
    """One entry per device: field ``device`` is its name for ``--device``, ``name`` its own, sizes are in bytes. A kind
    without devices has an entry with the reason in field ``unavailable``."""
    return [_cpu(), *_opencl()]


def device_facts(name: str) -> dict[str, Any]:
    """The entry of device ``name`` ("opencl:0"); empty where there is none."""
    return next((entry for entry in list_devices() if entry["device"] == name), {})


def _cpu() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {"device": "cpu", "name": Cpu().product, "type": "CPU", "compute_units": physical_cores(),
            "memory_bytes": memory}


def _opencl() -> list[dict[str, Any]]:
    try:
        load("opencl")
    except UserError as error:
        return [{"device": "opencl", "unavailable": str(error)}]
    describe = load_runtime().get_global_func("blockffn.opencl.devices", allow_missing=True)
    found = [dict(facts) for facts in describe()] if describe is not None else _from_tvm()
    if not found:
        return [{"device": "opencl", "unavailable": _NO_DRIVER}]
    return [{"device": f"opencl:{index}", **facts} for index, facts in enumerate(found)]


def _from_tvm() -> list[dict[str, Any]]:
    """The little that an OpenCL runtime of TVM's own tells."""
    found = []
    while (device := Accelerator("opencl", len(found))).exists:
        found.append({"name": device.product})
    return found
