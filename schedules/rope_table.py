"""Cosines and sines of the rotary embedding, computed once and stored with the weights."""

from __future__ import annotations

import numpy as np


def rope_table(positions: int, dim: int, theta: float, factor: float = 1.0) -> np.ndarray:
    """float32 [positions, dim]: cos of position/factor * theta^(-2i/dim), then sin.

    Frequencies and angles are rounded to float32 first, as the reference implementation does.
    """
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    inverse = (1.0 / np.float32(theta) ** exponent).astype(np.float32)
    angle = np.outer(np.arange(positions, dtype=np.float32) / np.float32(factor), inverse).astype(np.float32)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
