"""MLC's 4-bit group quantisation (q4f16_1, q4f32_1), and our order of its codes and scales in memory."""

from __future__ import annotations

import numpy as np

from .layout import (
    FLOAT_FORMATS,
    Q4_BLOCK,
    Q4_CODE_WORDS,
    Q4_SCALE_DTYPES,
    Q4_ZERO,
    stored_shape,
    tile_count,
    unpack_rows,
)

_ROWS = 2048  # a multiple of the block


def quantize(weight: np.ndarray, weight_format: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [..., out, in] -> codes uint8 [..., out, in], scales [..., out, ceil(in/32)], 32 inputs to a group.

    MLC's rule, all in the dtype of the scales: s = max|w| / 7, code = clip(round(w/s + 7), 0, 14), rounding half to
    even. A group of zeros has scale 0 and codes 7.
    """
    dtype = np.dtype(Q4_SCALE_DTYPES[weight_format])
    zero = dtype.type(Q4_ZERO)
    *outer, inputs = weight.shape
    groups = tile_count(inputs, Q4_BLOCK)
    grouped = np.zeros((*outer, groups, Q4_BLOCK), dtype)
    grouped.reshape(*outer, groups * Q4_BLOCK)[..., :inputs] = weight
    scales = np.abs(grouped).max(axis=-1) / zero
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = np.rint(grouped / scales[..., None] + zero)
    shifted[np.isnan(shifted)] = zero
    codes = np.clip(shifted, 0, 2 * Q4_ZERO).astype(np.uint8)
    return codes.reshape(*outer, groups * Q4_BLOCK)[..., :inputs], scales


def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [..., out, in]: (code - 7) * scale."""
    expanded = np.repeat(scales.astype(np.float32), Q4_BLOCK, axis=-1)[..., : codes.shape[-1]]
    return (codes.astype(np.float32) - Q4_ZERO) * expanded


def pack(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes [..., out, in] and scales [..., out, groups] -> uint32 [..., ceil(out/32), groups, words].

    In a block, byte b of word 32*p + o holds input 8p+b of output o in its low half and input 8p+4+b in its high
    half. The scales of the 32 outputs follow. Padding has code 7 and scale 0.
    """
    *outer, outputs, inputs = codes.shape
    groups, tiles = scales.shape[-1], tile_count(outputs, Q4_BLOCK)
    padded = np.full((*outer, tiles * Q4_BLOCK, groups * Q4_BLOCK), Q4_ZERO, np.uint8)
    padded[..., :outputs, :inputs] = codes
    # axes: tile, output, group, octet of inputs, half of the octet, input in the half
    split = padded.reshape(*outer, tiles, Q4_BLOCK, groups, 4, 2, 4)
    nibbles = split[..., 0, :] | split[..., 1, :] << 4
    words = np.ascontiguousarray(np.moveaxis(nibbles, -4, -2)).view(np.uint32)[..., 0]
    tail = np.zeros((*outer, tiles * Q4_BLOCK, groups), scales.dtype)
    tail[..., :outputs, :] = scales
    tail = np.ascontiguousarray(tail.reshape(*outer, tiles, Q4_BLOCK, groups).swapaxes(-1, -2)).view(np.uint32)
    return np.concatenate([words.reshape(*outer, tiles, groups, Q4_CODE_WORDS), tail], axis=-1)


def store(weight: np.ndarray, weight_format: str) -> np.ndarray:
    """Quantise and pack float32 [..., out, in], a few thousand rows at a time to spare memory."""
    *outer, outputs, inputs = weight.shape
    shape, dtype = stored_shape(weight_format, weight.shape, Q4_BLOCK)
    packed = np.empty(shape, dtype)
    flat, target = weight.reshape(-1, outputs, inputs), packed.reshape(-1, *shape[-3:])
    for rows, tiles in zip(flat, target):
        for first in range(0, outputs, _ROWS):
            part = pack(*quantize(rows[first : first + _ROWS], weight_format))
            tiles[first // Q4_BLOCK : first // Q4_BLOCK + len(part)] = part
    return packed


def unpack(packed: np.ndarray, outputs: int, inputs: int, weight_format: str) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of :func:`pack`: codes uint8 [..., outputs, inputs], scales [..., outputs, groups]."""
    *outer, tiles, groups, _ = packed.shape
    words = np.ascontiguousarray(packed[..., :Q4_CODE_WORDS]).view(np.uint8)
    nibbles = np.moveaxis(words.reshape(*outer, tiles, groups, 4, Q4_BLOCK, 4), -2, -4)
    codes = np.stack([nibbles & 15, nibbles >> 4], axis=-2).reshape(*outer, tiles * Q4_BLOCK, groups * Q4_BLOCK)
    scales = np.ascontiguousarray(packed[..., Q4_CODE_WORDS:]).view(Q4_SCALE_DTYPES[weight_format])
    scales = scales.swapaxes(-1, -2).reshape(*outer, tiles * Q4_BLOCK, groups)
    return codes[..., :outputs, :inputs], scales[..., :outputs, :]


def unpacked(stored: np.ndarray, weight_format: str, outputs: int, inputs: int) -> np.ndarray:
    """A stored matrix of any format as float [..., outputs, inputs]."""
    if weight_format in FLOAT_FORMATS:
        return unpack_rows(stored, outputs)
    return dequantize(*unpack(stored, outputs, inputs, weight_format))
