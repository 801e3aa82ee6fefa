"""GPU kernel ``linear``: ragged inputs and outputs, bias, residual, every variant of tokens."""

from dataclasses import replace

import numpy as np
import pytest
from gpu_harness import EXACT, TILES, by_family, run, token_counts
from harness import Out, nmse, normal, poison, same_bits, stored_matrix

from schedules import gpu, twins
from schedules.tiles import GPU_TILES

CASES = {
    "ragged": dict(inputs=33, outputs=97, bias_dtype="float32"),
    "many blocks": dict(inputs=288, outputs=64, residual_scale=-1.4),
    "few inputs": dict(inputs=13, outputs=1, bias_dtype="float32", residual_scale=0.7),
}


@pytest.mark.parametrize("family, weight_format, case",
                         by_family([(name, case) for name in gpu.FORMATS for case in CASES]))
def test_linear(rng, family, weight_format, case):
    tiles, counts = GPU_TILES[family], token_counts(family)
    options = dict(CASES[case])
    if "bias_dtype" in options and weight_format in ("float16", "q4f16_1"):
        options["bias_dtype"] = "float16"
    inputs, outputs, scale = options.pop("inputs"), options.pop("outputs"), options.get("residual_scale")
    func = gpu.linear(tiles, inputs, outputs, weight_format, **options)
    x = normal(rng, counts[-1], inputs)
    w, packed = stored_matrix(rng, weight_format, tiles.output_tile, outputs, inputs)
    bias = normal(rng, outputs, dtype=options["bias_dtype"]) if "bias_dtype" in options else None
    expected, residual = twins.linear(x, w, bias), None
    if scale is not None:
        residual = normal(rng, counts[-1], outputs)
        expected = residual + scale * expected
    for n in counts:
        optional = [a for a in (bias, None if residual is None else residual[:n]) if a is not None]
        assert nmse(run(func, x[:n], packed, *optional, Out((n, outputs))), expected[:n]) <= EXACT, n


@pytest.mark.parametrize("family", GPU_TILES)
def test_more_tokens_than_a_tree_has_take_the_prefill_tile(rng, family):
    """It adds in another order, which shows in the last bits; where a row has none, 65 tokens take the form of 64."""
    tiles = GPU_TILES[family]
    func = gpu.linear(tiles, 288, 64, "float32")
    x = normal(rng, 130, 288)
    w, packed = stored_matrix(rng, "float32", tiles.output_tile, 64, 288)
    tree, one_more, many = found = [run(func, x[:n], packed, Out((n, 64))) for n in (64, 65, 130)]
    assert all(nmse(y, twins.linear(x, w)[:len(y)]) <= EXACT for y in found)
    assert same_bits(one_more[:64], tree) == (tiles.prefill_tile == 0)
    assert same_bits(many[:65], one_more)


@pytest.mark.parametrize("load_bytes", [4, 8])
@pytest.mark.parametrize("weight_format", gpu.FORMATS)
def test_narrower_loads(rng, weight_format, load_bytes):
    """For a device that would rather read less than 16 bytes at once."""
    tiles = replace(TILES, load_bytes=load_bytes, token_tiles=(4,))
    x = normal(rng, 3, 72)
    w, packed = stored_matrix(rng, weight_format, tiles.output_tile, 45, 72)
    y = run(gpu.linear(tiles, 72, 45, weight_format), x, packed, Out((3, 45)))
    assert nmse(y, twins.linear(x, w)) <= EXACT


def test_padding_rows_do_not_reach_the_output(rng):
    """Garbage in the padding of the last weight tile stays there."""
    func = gpu.linear(TILES, 32, 45)
    x = normal(rng, 5, 32)
    w, packed = stored_matrix(rng, "float32", TILES.output_tile, 45, 32)
    poison(packed, np.s_[-1, :, 45 % TILES.output_tile:])
    assert nmse(run(func, x, packed, Out((5, 45))), twins.linear(x, w)) <= EXACT
