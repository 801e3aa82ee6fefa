"""Linear kernel: ragged outputs, groups, bias, residual."""

import numpy as np
import pytest
from harness import MAX_TOKENS, WEIGHT_FORMATS, Out, check_rows, normal, poison, run, stored_matrix

from schedules import cpu, twins

CASES = {
    "one output": dict(inputs=32, outputs=1),
    "ragged": dict(inputs=96, outputs=45, bias_dtype="float16"),
    "several tiles": dict(inputs=33, outputs=97, bias_dtype="float16", residual_scale=0.7),
    "whole tiles": dict(inputs=32, outputs=128, residual_scale=-1.4),
    "groups": dict(inputs=24, outputs=20, groups=3),
    "strided groups": dict(inputs=16, outputs=32, groups=2, group_stride=23, x_width=50, bias_dtype="float16"),
}


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_linear(target, rng, case, weight_format):
    options = dict(CASES[case])
    inputs, outputs = options.pop("inputs"), options.pop("outputs")
    groups, stride = options.get("groups", 1), options.get("group_stride", inputs)
    scale = options.get("residual_scale")
    func = cpu.linear(target.tiles, inputs, outputs, weight_format, **options)
    x = normal(rng, MAX_TOKENS, options.get("x_width", groups * stride))
    w, packed = stored_matrix(rng, weight_format, target.tiles.output_tile, groups, outputs, inputs)
    bias = normal(rng, groups * outputs, dtype="float16") if options.get("bias_dtype") else None
    residual = None if scale is None else normal(rng, MAX_TOKENS, groups * outputs)

    columns = np.stack([x[:, g * stride:g * stride + inputs] for g in range(groups)], axis=1)
    expected = twins.linear(columns, w, bias)
    if scale is not None:
        expected = residual + scale * expected

    def kernel(n):
        optional = [a for a in (bias, None if residual is None else residual[:n]) if a is not None]
        return run(func, target, x[:n], packed, *optional, Out((n, groups * outputs)))

    check_rows(kernel, expected)


def test_padding_rows_do_not_reach_the_output(target, rng):
    """Garbage in the padding of the last weight tile stays there."""
    func = cpu.linear(target.tiles, 32, 45)
    x = normal(rng, 5, 32)
    _, packed = stored_matrix(rng, "float32", target.tiles.output_tile, 1, 45, 32)
    clean = run(func, target, x, packed, Out((5, 45)))
    poison(packed, np.s_[:, -1, :, 45 % target.tiles.output_tile:])
    assert np.array_equal(run(func, target, x, packed, Out((5, 45))), clean)
