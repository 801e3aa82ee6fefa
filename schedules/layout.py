"""Order of weights in memory. A linear weight [out, in] is stored as [ceil(out/tile), in, tile]:
a kernel computes ``tile`` outputs at once from one contiguous stream. Padding rows are zero."""

from __future__ import annotations

import numpy as np


def tile_count(outputs: int, tile: int) -> int:
    """Number of tiles that hold ``outputs`` rows."""
    return -(-outputs // tile)


def pack_rows(weight: np.ndarray, tile: int) -> np.ndarray:
    """[..., out, in] -> [..., ceil(out/tile), in, tile], same dtype, C-contiguous."""
    *outer, outputs, inputs = weight.shape
    tiles = tile_count(outputs, tile)
    if outputs != tiles * tile:
        padding = [(0, 0)] * len(outer) + [(0, tiles * tile - outputs), (0, 0)]
        weight = np.pad(weight, padding)
    return np.ascontiguousarray(weight.reshape(*outer, tiles, tile, inputs).swapaxes(-1, -2))


def unpack_rows(packed: np.ndarray, outputs: int) -> np.ndarray:
    """Inverse of :func:`pack_rows`: [..., tiles, in, tile] -> [..., outputs, in]."""
    *outer, tiles, inputs, tile = packed.shape
    return packed.swapaxes(-1, -2).reshape(*outer, tiles * tile, inputs)[..., :outputs, :]
