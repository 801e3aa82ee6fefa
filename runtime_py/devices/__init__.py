"""Where kernels run: the processor, or a device with memory of its own behind TVM's device interface."""

from __future__ import annotations

from .device import Device, find_device, load
from .listing import list_devices

__all__ = ["Device", "find_device", "list_devices", "load"]
