"""``devices``: where kernels can run."""

from __future__ import annotations

import argparse
from typing import Any

from ..devices import list_devices
from .common import print_json

_MIB = 1 << 20
_FEATURES = (("storage_16bit", "16-bit storage"), ("storage_8bit", "8-bit storage"), ("int8", "8-bit arithmetic"),
             ("int16", "16-bit arithmetic"), ("int64", "64-bit integers"), ("staging", "staged copies"))


def add_parser(subparsers: Any) -> None:
    summary = "list the devices that --device can name"
    parser = subparsers.add_parser("devices", help=summary, description=f"{summary.capitalize()}, and why others "
                                   "cannot be used. Looking for OpenCL or Vulkan the first time compiles its runtime.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    devices = list_devices()
    if args.json:
        print_json({"devices": devices})
        return
    for device in devices:
        print(f"{device['device']:<10} {device.get('name') or 'unavailable: ' + device['unavailable']}")
        for line in _details(device):
            print(f"{'':<10} {line}")


def _details(device: dict[str, Any]) -> list[str]:
    """What is known beyond the name, in three lines at most."""
    kind = [device[field] for field in ("type", "platform") if device.get(field)]
    kind += [f"driver {device['driver']}"] if "driver" in device else []
    kind += [f"{device['compute_units']} compute units"] if "compute_units" in device else []
    sizes = [(f"{device[field] // _MIB} MiB", text) for field, text in (
        ("memory_bytes", "memory"), ("max_allocation_bytes", "in one buffer")) if device.get(field)]
    if "local_memory_bytes" in device:
        sizes += [(f"{device['local_memory_bytes'] // 1024} KiB", "local memory"),
                  (f"{device['max_work_group_size']}", "work-items in a group"),
                  ("with" if device["fp16"] else "without", "fp16")]
    features = [text for field, text in _FEATURES if device.get(field)]
    return [", ".join(line) for line in (kind, [" ".join(size) for size in sizes], features) if line]
