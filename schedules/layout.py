"""Order of weights in memory. A linear weight [out, in] is stored as [ceil(out/tile), in, tile]:
a kernel computes ``tile`` outputs at once from one contiguous stream. Padding rows are zero."""

from __future__ import annotations

import numpy as np


def tile_count(outputs: int, tile: int) -> int:
    """Number of tiles that hold ``outputs`` rows."""
    return -(-outputs // tile)


def pack_rows(weight: np.ndarray, tile: int, dtype: str = "float32") -> np.ndarray:
    """[..., out, in] -> ``dtype`` [..., ceil(out/tile), in, tile], C-contiguous."""
    *outer, outputs, inputs = weight.shape
    packed = np.zeros((*outer, tile_count(outputs, tile), inputs, tile), dtype)
    whole = outputs // tile
    rows = weight[..., : whole * tile, :].reshape(*outer, whole, tile, inputs)
    packed[..., :whole, :, :] = rows.swapaxes(-1, -2)
    if outputs % tile:
        packed[..., whole, :, : outputs % tile] = weight[..., whole * tile :, :].swapaxes(-1, -2)
    return packed


def unpack_rows(packed: np.ndarray, outputs: int) -> np.ndarray:
    """Inverse of :func:`pack_rows`: [..., tiles, in, tile] -> [..., outputs, in]."""
    *outer, tiles, inputs, tile = packed.shape
    return packed.swapaxes(-1, -2).reshape(*outer, tiles * tile, inputs)[..., :outputs, :]
