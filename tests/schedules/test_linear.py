"""Linear kernel: ragged inputs and outputs, bias, residual."""

import numpy as np
import pytest
from harness import MAX_TOKENS, Out, check_rows, handed_on, normal, poison, run, stored_matrix

from schedules import cpu, q4, twins

CASES = {
    "one output": dict(inputs=32, outputs=1),
    "ragged": dict(inputs=96, outputs=45, bias_dtype="float16"),
    "several tiles": dict(inputs=33, outputs=97, bias_dtype="float16", residual_scale=0.7),
    "whole tiles": dict(inputs=32, outputs=128, residual_scale=-1.4),
    "few inputs": dict(inputs=5, outputs=20),
}


@pytest.mark.parametrize("case", CASES)
def test_linear(kind, rng, case):
    options = dict(CASES[case])
    inputs, outputs, scale = options.pop("inputs"), options.pop("outputs"), options.get("residual_scale")
    func = cpu.linear(kind.target.tiles, inputs, outputs, kind.weight_format, kind.activations, **options)
    x, values = handed_on(normal(rng, MAX_TOKENS, inputs), kind.activations)
    w, packed = stored_matrix(rng, kind.weight_format, kind.target.tiles.output_tile, outputs, inputs)
    bias = normal(rng, outputs, dtype="float16") if options.get("bias_dtype") else None
    residual = None if scale is None else normal(rng, MAX_TOKENS, outputs)
    expected = twins.linear(values, w, bias)
    if scale is not None:
        expected = residual + scale * expected

    def kernel(n):
        optional = [a for a in (bias, None if residual is None else residual[:n]) if a is not None]
        return run(func, kind.target, x[:n], packed, *optional, Out((n, outputs)))

    check_rows(kernel, expected)


def test_largest_codes_do_not_overflow(coded):
    """Every code and every weight at its largest, of either sign."""
    target, mode = coded
    inputs = 4096
    x, values = handed_on(np.repeat(np.float32([[1.0], [-1.0]]), inputs, axis=1), mode)
    w = np.repeat(np.float32([[1.0], [-1.0]]), 16, axis=0) * np.ones(inputs, "float32")
    packed = q4.store(w, "q4f32_1")
    y = run(cpu.linear(target.tiles, inputs, 32, "q4f32_1", mode), target, x, packed, Out((2, 32)))
    np.testing.assert_allclose(y, twins.linear(values, w), rtol=1e-5)


def test_padding_rows_do_not_reach_the_output(target, rng):
    """Garbage in the padding of the last weight tile stays there."""
    func = cpu.linear(target.tiles, 32, 45)
    x = normal(rng, 5, 32)
    _, packed = stored_matrix(rng, "float32", target.tiles.output_tile, 45, 32)
    clean = run(func, target, x, packed, Out((5, 45)))
    poison(packed, np.s_[-1, :, 45 % target.tiles.output_tile:])
    assert np.array_equal(run(func, target, x, packed, Out((5, 45))), clean)
