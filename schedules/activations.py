"""How kernels hand activations to 4-bit matrices: float32, or 8-bit codes with a scale per group of 32.

"f32": float32 [..., width]. "int8", "int8x2": int32 [..., groups, words], one record per group of 32 columns:
eight words of codes per plane (signed bytes in column order), the bits of the float32 scale, and per plane
-7 * (sum of its codes), which turns weight codes 0..14 into weights -7..7. int8: x ~ scale * code. int8x2:
x ~ scale * (128 * high + low), about 15 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .layout import Q4_BLOCK, Q4_ZERO, tile_count

PLANES = {"f32": 0, "int8": 1, "int8x2": 2}  # planes of 8-bit codes
ACTIVATIONS = tuple(PLANES)
GROUP = Q4_BLOCK  # columns that share a scale: those that share one in 4-bit weights
CODE_WORDS = GROUP // 4
LOW_BITS = 7  # of the low plane
LARGEST_CODE = {"int8": 127, "int8x2": 127 << LOW_BITS}
SMALLEST = 2.0**-100  # a group whose values are all smaller becomes zeros: codes / max|x| must not overflow


def record_words(activations: str) -> int:
    """int32 words of a group's record."""
    return PLANES[activations] * (CODE_WORDS + 1) + 1


def activation_shape(activations: str, shape: Sequence) -> tuple[tuple, str]:
    """Shape and dtype in which activations [..., width] are handed on."""
    if activations == "f32":
        return tuple(shape), "float32"
    *outer, width = shape
    return (*outer, tile_count(width, GROUP), record_words(activations)), "int32"


def encode(x: np.ndarray, activations: str) -> np.ndarray:
    """float32 [..., width] -> as handed on. The codes are round(x * (largest code / max|x|)), half to even."""
    if activations == "f32":
        return x
    *outer, width = x.shape
    shape, _ = activation_shape(activations, x.shape)
    groups, planes, largest = shape[-2], PLANES[activations], np.float32(LARGEST_CODE[activations])
    padded = np.zeros((*outer, groups * GROUP), np.float32)
    padded[..., :width] = x
    padded = padded.reshape(*outer, groups, GROUP)
    top = np.abs(padded).max(axis=-1)
    inverse = np.where(top >= SMALLEST, largest / np.maximum(top, np.float32(SMALLEST)), np.float32(0))
    # The product of two float32 is exact in float64, so that this rounds once, as the kernels' fma does.
    codes = np.rint(padded.astype(np.float64) * inverse[..., None]).astype(np.int32)
    high = codes + (1 << LOW_BITS >> 1) >> LOW_BITS
    parts = [codes] if planes == 1 else [high, codes - (high << LOW_BITS)]
    words = [np.ascontiguousarray(part.astype(np.int8)).view(np.int32) for part in parts]
    scale = np.ascontiguousarray(top / largest, np.float32)[..., None].view(np.int32)
    zeros = [-Q4_ZERO * part.sum(axis=-1, keepdims=True, dtype=np.int32) for part in parts]
    return np.concatenate([*words, scale, *zeros], axis=-1)


def decode(records: np.ndarray, activations: str, width: int) -> np.ndarray:
    """What the records stand for, float64 [..., width]."""
    if activations == "f32":
        return records.astype(np.float64)
    planes = PLANES[activations]
    codes = np.zeros((*records.shape[:-1], GROUP), np.int64)
    for plane in range(planes):
        words = np.ascontiguousarray(records[..., plane * CODE_WORDS:(plane + 1) * CODE_WORDS])
        codes = (codes << LOW_BITS) + words.view(np.int8)
    scale = np.ascontiguousarray(records[..., planes * CODE_WORDS]).view(np.float32).astype(np.float64)
    return (codes * scale[..., None]).reshape(*records.shape[:-2], -1)[..., :width]


def recode(values: np.ndarray, activations: str) -> np.ndarray:
    """What is left of values [..., width] that are handed on in the format; "f32": all of it, of any float dtype."""
    if activations == "f32":
        return values
    return decode(encode(values.astype(np.float32), activations), activations, values.shape[-1])
