"""Where kernels run: the processor, or a device with memory of its own behind TVM's device interface."""

from .device import KINDS, Device, Inputs, find_device, kind_of_target, load
from .listing import device_facts, list_devices
from .logits import Logits, Row

__all__ = ["KINDS", "Device", "Inputs", "Logits", "Row", "device_facts", "find_device", "kind_of_target",
           "list_devices", "load"]
