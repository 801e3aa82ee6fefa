"""The library's kernel that chooses tokens and keeps what they accept of a token tree."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from struct import Struct
from time import perf_counter
from typing import Any

import numpy as np

from .devices import Device

_SETTINGS = 5  # numbers before those of the nodes, three for each


class AcceptKernel:
    """Calls the kernel (schedules/cpu/accept.py) on logits in the processor's memory. One call at a time: its inputs
    are kept and written again. ``seconds``: what the kernel itself took so far. ``known``: the logits of the last pass,
    and the tensor of the same memory: making one of an array takes longer than the draw."""

    def __init__(self, kernel: Any, device: Device) -> None:
        self._kernel, self._device = kernel, device
        self._kept: dict[int, tuple[Callable[..., None], list[Any], memoryview]] = {}
        self.seconds = 0.0
        self._keep_text(1)
        self.known: tuple[np.ndarray, Any] = np.empty(0), None

    def __call__(self, logits: np.ndarray, text: array[int], *asked: float) -> list[int]:
        """Logits float32 [n, V] of a tree's nodes (or [V] of one), int32 tokens that count as seen, and 5 + 3 n numbers
        -> 2 n: the nodes that are accepted, filled up with -1, then the token drawn at each; -1 where the largest logit
        is not finite."""
        n = (len(asked) - _SETTINGS) // 3
        if text:
            if len(text) > len(self._text):
                self._keep_text(2 * len(text))
            self._text[:len(text)] = text
        write, tensors, accepted = self._kept.get(n) or self._keep(n)
        write(*asked)
        known, tensor = self.known
        if logits is not known:
            copy = self._device.inputs(((n, logits.size // n),), "float32")  # aligned as kernels expect
            copy.arrays[0][...] = logits
            tensor = copy.tensors[0]
        start = perf_counter()
        self._kernel(tensor, self._text_tensor, *tensors)
        self.seconds += perf_counter() - start
        return accepted.tolist()

    def _keep(self, n: int) -> tuple[Callable[..., None], list[Any], memoryview]:
        numbers = _SETTINGS + 3 * n
        asked, accepted = self._device.inputs(((numbers,),), "float64"), self._device.inputs(((2, n),))
        write = partial(Struct(f"{numbers}d").pack_into, memoryview(asked.arrays[0]), 0)
        self._kept[n] = write, asked.tensors + accepted.tensors, memoryview(accepted.arrays[0].reshape(-1))
        return self._kept[n]

    def _keep_text(self, length: int) -> None:
        text = self._device.inputs(((length,),))
        self._text, self._text_tensor = memoryview(text.arrays[0]), text.tensors[0]
