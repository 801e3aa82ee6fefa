"""Order of weights in memory, by format.

"float32", "float16": a matrix [out, in] is stored as [ceil(out/tile), in, tile]; a kernel computes ``tile``
outputs at once from one contiguous stream. Padding rows are zero.

"q4f16_1", "q4f32_1": blocks of 32 outputs x 32 inputs, [ceil(out/32), ceil(in/32), words] of uint32: 128 words
hold the 4-bit codes, the rest one scale per output. Codes and scales follow MLC's group quantisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LAYOUT_VERSION = 1  # raise it when the bytes stored for the same shapes change
FLOAT_FORMATS = ("float32", "float16")
Q4_BLOCK = 32  # outputs, and inputs that share a scale
Q4_ZERO = 7  # the code of weight 0; codes are 0..14
Q4_CODE_WORDS = 128
Q4_SCALE_DTYPES = {"q4f16_1": "float16", "q4f32_1": "float32"}
Q4_FORMATS = tuple(Q4_SCALE_DTYPES)


def stored_shape(weight_format: str, shape: Sequence[int], tile: int) -> tuple[tuple[int, ...], str]:
    """Shape and dtype in which a logical matrix [..., out, in] is stored."""
    *outer, outputs, inputs = shape
    if weight_format in FLOAT_FORMATS:
        return (*outer, tile_count(outputs, tile), inputs, tile), weight_format
    blocks = tile_count(outputs, Q4_BLOCK), tile_count(inputs, Q4_BLOCK)
    scale_words = Q4_BLOCK * np.dtype(Q4_SCALE_DTYPES[weight_format]).itemsize // 4
    return (*outer, *blocks, Q4_CODE_WORDS + scale_words), "uint32"


def row_blocks(weight_format: str, shape: tuple[int, int], tile: int, largest: int | None) -> tuple[int, ...]:
    """Rows of each block that a logical matrix [out, in] is cut into so that no block is stored in more than
    ``largest`` bytes (None: any number): as few as possible, all but the last of one size."""
    outputs, inputs = shape
    step = max(tile, Q4_BLOCK)
    stored, dtype = stored_shape(weight_format, (step, inputs), tile)
    steps = tile_count(outputs, step)
    if largest is not None:
        fitting = max(1, largest // (math.prod(stored) * np.dtype(dtype).itemsize))
        steps = tile_count(steps, tile_count(steps, fitting))
    rows = steps * step
    return tuple(min(rows, outputs - first) for first in range(0, outputs, rows))


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
