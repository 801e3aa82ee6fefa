"""Logits that stay on a device: only what a choice needs comes to the host."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .device import Accelerator


class Logits:
    """Logits float32 [m, V] in a device's memory. ``argmax``: the library's function that computes, for all rows, the
    lowest token with the largest logit, int32 [m], and that logit, float32 [m]."""

    def __init__(self, device: Accelerator, tensor: Any, argmax: Any) -> None:
        self._device, self._tensor, self._argmax = device, tensor, argmax

    def __len__(self) -> int:
        return self._tensor.shape[0]

    def __getitem__(self, index: int) -> Row:
        index = range(len(self))[index]  # from the end on, and IndexError
        return Row(self, index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._device.host(self._tensor).astype(dtype or np.float32, copy=False)

    @cached_property
    def most_likely(self) -> list[int | None]:
        """For every row the lowest token with the largest logit; None where that is not finite."""
        result, device = self._argmax(self._tensor), self._device
        tokens, values = (device.host(device.item(result, index)) for index in range(2))
        return [token if finite else None for token, finite in zip(tokens.tolist(), np.isfinite(values).tolist())]

    def row(self, index: int) -> np.ndarray:
        """One row, float32 [V]."""
        return self._device.row(self._tensor, index)


class Row:
    """One row of Logits; an array, float32 [V], to numpy."""

    def __init__(self, logits: Logits, index: int) -> None:
        self._logits, self._index = logits, index

    @property
    def most_likely(self) -> int | None:
        """The lowest token with the largest logit; None when that is not finite."""
        return self._logits.most_likely[self._index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._logits.row(self._index).astype(dtype or np.float32, copy=False)
