"""The roof of arithmetic, on a device that is made up."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from runtime_py.bench.arithmetic import multiply_add_rate
from runtime_py.devices.device import Inputs


@pytest.mark.parametrize(("activations", "products"), [("f32", 1), ("int8", 4), ("int8x2", 2)])
def test_what_a_driver_compiles_at_first_does_not_count(monkeypatch, activations, products):
    """The kernel takes a nanosecond for a step, the first time half a second more."""
    clock, asked = [0.0], []

    def kernel(x, factors, steps, y):
        clock[0] += steps * 1e-9 + (0 if asked else 0.5)
        asked.append(steps)

    def inputs(shapes, dtype):
        arrays = [np.zeros(shape, dtype) for shape in shapes]
        return Inputs(arrays, arrays)

    device = SimpleNamespace(copies=True, zeros=np.zeros, inputs=inputs, wait=lambda: None)
    engine = SimpleNamespace(device=device, library=SimpleNamespace(kernel=lambda name: kernel))
    description = SimpleNamespace(factories={"peak": SimpleNamespace(arguments={
        "width": 768, "activations": activations})})
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert multiply_add_rate(engine, description) == pytest.approx(2 * 1024 * 768 * products)
    assert asked[-1] * 1e-9 >= 0.02 and asked[-5:] == [asked[-1]] * 5
    description.factories.clear()
    assert multiply_add_rate(engine, description) is None
