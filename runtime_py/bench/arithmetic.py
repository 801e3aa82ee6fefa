"""How fast a device multiplies and adds: the bound that passes over many tokens are held against."""

from __future__ import annotations

import statistics
import time

import numpy as np

from schedules.activations import PLANES

from ..engine import Engine
from .calls import Description

_KERNEL = "peak"
_DEVICE_ROWS = 1024  # enough to fill a large GPU
_SECONDS = 0.02  # of a reading, at least
_READINGS = 5
_BYTES = 4  # products of bytes that one step adds to a sum


def multiply_add_rate(engine: Engine, description: Description) -> float | None:
    """GOP/s, 2 per multiply-add of a weight and an input: the median of five readings of the artifact's kernel ``peak``
    (schedules/cpu/peak.py, schedules/gpu/peak.py), which does what its other kernels compute by, on numbers in
    registers. None for an artifact without that kernel."""
    if _KERNEL not in description.factories:
        return None
    made, device = description.factories[_KERNEL].arguments, engine.device
    width, planes = made["width"], PLANES[made["activations"]]
    rows = _DEVICE_ROWS if device.copies else engine.threads
    dtype, factors = ("int32", (0x01010101, 0x01010101)) if planes else ("float32", (0.5, 1.0))
    kernel, result = engine.library.kernel(_KERNEL), device.zeros((rows, width), dtype)
    inputs = device.inputs(((width,), (2,)), dtype)
    for array, values in zip(inputs.arrays, (np.arange(width), factors)):
        array[...] = values
    inputs.send()

    def seconds(steps: int) -> float:
        device.wait()
        begin = time.perf_counter()
        kernel(*inputs.tensors, steps, result)
        device.wait()
        return time.perf_counter() - begin

    steps = 1024
    seconds(steps)  # a device's driver may compile the kernel now
    while (taken := seconds(steps)) < _SECONDS:
        steps *= 2 if taken > _SECONDS / 8 else 8
    # With bytes a weight and an input take a product for each plane of the input.
    per_step = 2 * rows * width * (_BYTES / planes if planes else 1)
    return per_step * steps / statistics.median(seconds(steps) for _ in range(_READINGS)) / 1e9
