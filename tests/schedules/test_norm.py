"""RMSNorm kernel."""

import numpy as np
import pytest
from harness import DTYPES, EXACT, MAX_TOKENS, TOKENS, Out, check_rows, nmse, normal, out_rows, run, same_bits

from schedules import activations, cpu, twins


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width, x_width, scale", [(1, 0, 1.0), (32, 0, 0.25), (45, 97, 1.0), (96, 100, 3.0)])
def test_norm(target, rng, width, x_width, scale, dtype):
    eps = 1e-5
    func = cpu.rms_norm(target.tiles, width, eps, dtype, x_width=x_width, scale=scale)
    x, weight = normal(rng, MAX_TOKENS, x_width or width), normal(rng, width, dtype=dtype)
    x[3] = 0.0
    x[4] *= 1e-4  # of the size of eps
    expected = twins.rms_norm(x[:, :width], weight, eps, scale)
    check_rows(lambda n: run(func, target, x[:n], weight, Out((n, width))), expected)


@pytest.mark.parametrize("width, x_width, scale", [(1, 0, 1.0), (45, 97, 1.0), (96, 100, 3.0)])
def test_norm_as_codes(coded, rng, width, x_width, scale):
    """The codes are those of the float32 result."""
    target, mode = coded
    options = dict(x_width=x_width, scale=scale, gather=True)
    x, weight = normal(rng, MAX_TOKENS, x_width or width), normal(rng, width, dtype="float16")
    x[3] = 0.0
    picked = rng.permutation(MAX_TOKENS).astype("int32")
    whole = activations.encode(run(cpu.rms_norm(target.tiles, width, 1e-5, "float16", **options), target, x, weight,
                                   picked, Out((MAX_TOKENS, width))), mode)
    func = cpu.rms_norm(target.tiles, width, 1e-5, "float16", mode, **options)
    for n in TOKENS:
        assert same_bits(run(func, target, x, weight, picked[:n], out_rows(mode, n, width)), whole[:n]), n


def test_gathered_rows(target, rng):
    width = 45
    func = cpu.rms_norm(target.tiles, width, 1e-6, gather=True)
    x, weight = normal(rng, 33, width), normal(rng, width)
    expected = twins.rms_norm(x, weight, 1e-6)
    everything = run(func, target, x, weight, np.arange(33, dtype="int32"), Out((33, width)))
    for rows in ([0], [32], [5, 5, 0, 32], rng.integers(0, 33, 65)):
        rows = np.asarray(rows, "int32")
        y = run(func, target, x, weight, rows, Out((len(rows), width)))
        assert nmse(y, expected[rows]) <= EXACT
        assert same_bits(y, everything[rows])
