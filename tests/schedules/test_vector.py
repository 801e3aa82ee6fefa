"""Vector building blocks: accuracy of the exponential and the logarithm, and a sum's fixed order."""

from dataclasses import replace

import numpy as np
import pytest
from harness import Out, elementwise, run, same_bits

from schedules import builder
from schedules.cpu import vector


@pytest.mark.parametrize("low, high", [(-87.0, 0.0), (-1e-3, 0.0), (0.0, 88.0)])
def test_exp_is_accurate_to_2_ulp(target, low, high):
    x = np.linspace(low, high, 200_003, dtype=np.float32)
    y = run(elementwise(target, len(x), vector.exp), target, x, Out(x.shape))
    expected = np.exp(x.astype(np.float64))
    ulp = np.spacing(expected.astype(np.float32)).astype(np.float64)
    assert (np.abs(y - expected) / ulp).max() <= 2.0


def test_exp_is_clamped_and_exact_at_zero(target):
    x = np.float32([0.0, -0.0, -88.0, -1e3, -3e38, -np.inf, 89.0, 1e4, np.inf])
    y = run(elementwise(target, len(x), vector.exp), target, x, Out(x.shape))
    assert (y[:2] == 1).all()
    assert (y[2:6] == y[2]).all() and 0 < y[2] < 2e-38
    assert (y[6:] == y[6]).all() and 1e38 < y[6] < np.inf


def test_logarithm(target):
    x = np.concatenate([np.geomspace(1, 1e6, 4000), 1 + np.geomspace(1e-7, 1, 999), [1.0]]).astype("float32")
    scalar = replace(target, tiles=replace(target.tiles, lanes=1))
    y = run(elementwise(scalar, len(x), lambda value, _: vector.log(value)), target, x, Out((len(x),)))
    assert np.abs(y - np.log(x.astype(np.float64))).max() <= 1e-6 and y[-1] == 0.0


def test_vector_and_scalar_code_agree(target):
    """A vector's lanes and the scalar rest of a loop compute the same bits."""
    x = np.linspace(-80, 2, 97, dtype=np.float32)
    for function in (vector.exp, vector.silu):
        whole = run(elementwise(target, 97, function), target, x, Out((97,)))
        single = elementwise(target, 1, function)
        assert same_bits(whole, np.concatenate([run(single, target, x[i:i + 1], Out((1,))) for i in range(97)]))


@pytest.mark.parametrize("missing", [0, 1])
def test_sums_equal_each_registers_sum(target, rng, missing):
    lanes = target.tiles.lanes
    count = lanes - missing
    x = rng.standard_normal((count, lanes)).astype("float32")

    def kernel(together):
        with builder.kernel(__name__) as k:
            source, y = k.tensor(x.shape), k.tensor((count,))
            registers = [vector.Register(lanes, vector.load(source, i, 0, lanes=lanes)) for i in range(count)]
            whole = vector.Register(lanes, vector.sums(registers)) if together else None
            for i in range(count):
                vector.store(y, whole.lane(i) if together else registers[i].sum(), i, lanes=1)
        return k.func

    assert same_bits(*(run(kernel(together), target, x, Out((count,))) for together in (True, False)))
