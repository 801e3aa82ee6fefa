"""Packed order of weights."""

import numpy as np
import pytest

from schedules.layout import pack_rows, tile_count, unpack_rows
from schedules.tiles import CPU_TILES


@pytest.mark.parametrize("tile", [8, 16, 32])
@pytest.mark.parametrize("shape", [(1, 3), (45, 7), (2, 97, 5), (2, 3, 32, 4)])
def test_pack_rows(shape, tile):
    weight = np.random.default_rng(0).standard_normal(shape).astype("float32")
    packed = pack_rows(weight, tile)
    *outer, outputs, inputs = shape
    assert packed.shape == (*outer, tile_count(outputs, tile), inputs, tile)
    assert np.array_equal(unpack_rows(packed, outputs), weight)
    for o in (0, outputs - 1):
        assert np.array_equal(packed[..., o // tile, :, o % tile], weight[..., o, :])
    assert not unpack_rows(packed, tile_count(outputs, tile) * tile)[..., outputs:, :].any()


@pytest.mark.parametrize("family", CPU_TILES)
def test_expert_tiles_need_no_padding(family):
    tiles = CPU_TILES[family]
    for size in range(8, 520, 8):
        tile = tiles.expert_tile(size)
        assert size % tile == 0 and 4 <= tile <= tiles.output_tile and tile % min(tiles.lanes, tile) == 0
