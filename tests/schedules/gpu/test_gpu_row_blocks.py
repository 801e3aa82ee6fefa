"""Matrices that are too large for one buffer, in blocks of rows: the same bits as in one piece."""

from dataclasses import replace

import numpy as np
import pytest
from gpu_harness import TILES as ALL_TILES
from gpu_harness import run
from harness import Out, normal, same_bits, stored_matrix

from schedules import gpu
from schedules.layout import row_blocks, stored_shape

TILES = replace(ALL_TILES, token_tiles=(1, 4))
ROWS, WIDTH = 150, 70  # the last tile is not full
BLOCKS = (64, 64, 22)


def blocks_of(packed):
    """Tiles of 32 rows of a stored matrix, as BLOCKS says."""
    return packed[:2], packed[2:4], packed[4:]


@pytest.mark.parametrize("weight_format", ["float32", "q4f32_1"])
def test_linear(rng, weight_format):
    _, packed = stored_matrix(rng, weight_format, TILES.output_tile, ROWS, WIDTH)
    bias, residual = normal(rng, ROWS), normal(rng, 5, ROWS)
    options = {"bias_dtype": "float32", "residual_scale": 0.5}
    whole = gpu.linear(TILES, WIDTH, ROWS, weight_format, **options)
    split = gpu.linear(TILES, WIDTH, ROWS, weight_format, row_blocks=BLOCKS, **options)
    x = normal(rng, 5, WIDTH)
    for n in (1, 5):
        rest = bias, residual[:n], Out((n, ROWS))
        assert same_bits(run(split, x[:n], *blocks_of(packed), *rest), run(whole, x[:n], packed, *rest))


@pytest.mark.parametrize("weight_format", ["float32", "q4f32_1"])
def test_embedding(rng, weight_format):
    _, packed = stored_matrix(rng, weight_format, TILES.output_tile, ROWS, WIDTH)
    ids = np.array([0, 63, 64, 127, 128, 149, 5], "int32")
    out = Out((len(ids), WIDTH))
    whole = run(gpu.embedding(TILES, ROWS, WIDTH, weight_format, 2.0), ids, packed, out)
    split = gpu.embedding(TILES, ROWS, WIDTH, weight_format, 2.0, row_blocks=BLOCKS)
    assert same_bits(run(split, ids, *blocks_of(packed), out), whole)


@pytest.mark.parametrize("weight_format", ["float32", "float16", "q4f16_1", "q4f32_1"])
@pytest.mark.parametrize("shape", [(1, 3), (150, 70), (73448, 1792)])
@pytest.mark.parametrize("largest", [None, 1 << 14, 1 << 20, 128 << 20, 1 << 40])
def test_blocks_fit_and_are_few(weight_format, shape, largest):
    def size(rows):
        stored, dtype = stored_shape(weight_format, (rows, shape[1]), 32)
        return np.prod(stored, dtype=np.int64) * np.dtype(dtype).itemsize

    blocks = row_blocks(weight_format, shape, 32, largest)
    assert sum(blocks) == shape[0] and all(rows % 32 == 0 for rows in blocks[:-1]) and len(set(blocks[:-1])) <= 1
    if largest is None:
        assert len(blocks) == 1
    elif size(32) <= largest:
        assert max(map(size, blocks)) <= largest
        assert len(blocks) == 1 or len(blocks) - 1 <= size(shape[0]) / (largest - size(32) + 1)
