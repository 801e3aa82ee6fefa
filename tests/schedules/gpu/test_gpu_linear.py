"""GPU kernel ``linear``: ragged inputs and outputs, bias, residual, every variant of tokens."""

import numpy as np
import pytest
from gpu_harness import EXACT, TILES, run
from harness import Out, nmse, normal, poison, stored_matrix

from schedules import gpu, twins

TOKENS = (1, 2, 5, 8, 9, 17, 33, 64, 130)
CASES = {
    "ragged": dict(inputs=33, outputs=97, bias_dtype="float32"),
    "many blocks": dict(inputs=288, outputs=64, residual_scale=-1.4),
    "few inputs": dict(inputs=13, outputs=1, bias_dtype="float32", residual_scale=0.7),
}


@pytest.mark.parametrize("weight_format", gpu.FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_linear(rng, case, weight_format):
    options = dict(CASES[case])
    inputs, outputs, scale = options.pop("inputs"), options.pop("outputs"), options.get("residual_scale")
    func = gpu.linear(TILES, inputs, outputs, weight_format, **options)
    x = normal(rng, TOKENS[-1], inputs)
    w, packed = stored_matrix(rng, weight_format, TILES.output_tile, outputs, inputs)
    bias = normal(rng, outputs) if "bias_dtype" in options else None
    expected, residual = twins.linear(x, w, bias), None
    if scale is not None:
        residual = normal(rng, TOKENS[-1], outputs)
        expected = residual + scale * expected
    for n in TOKENS:
        optional = [a for a in (bias, None if residual is None else residual[:n]) if a is not None]
        assert nmse(run(func, x[:n], packed, *optional, Out((n, outputs))), expected[:n]) <= EXACT, n


def test_padding_rows_do_not_reach_the_output(rng):
    """Garbage in the padding of the last weight tile stays there."""
    func = gpu.linear(TILES, 32, 45)
    x = normal(rng, 5, 32)
    w, packed = stored_matrix(rng, "float32", TILES.output_tile, 45, 32)
    poison(packed, np.s_[-1, :, 45 % TILES.output_tile:])
    assert nmse(run(func, x, packed, Out((5, 45))), twins.linear(x, w)) <= EXACT
