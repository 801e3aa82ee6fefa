"""The library's kernel that chooses tokens and keeps what they accept of a token tree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import Struct
from time import perf_counter
from typing import Any

import numpy as np

from .devices import Device


class AcceptKernel:
    """Calls the kernel (schedules/cpu/accept.py) on logits in the processor's memory. One call at a time: its inputs
    are kept and written again. ``seconds``: what the kernel itself took so far."""

    def __init__(self, kernel: Any, device: Device) -> None:
        self._kernel, self._device = kernel, device
        self._kept: dict[int, tuple[Callable[..., None], list[Any], memoryview]] = {}
        self.seconds = 0.0

    def __call__(self, logits: np.ndarray, *asked: float) -> list[int]:
        """Logits float32 [n, V] of a tree's nodes and 3 + 3 n numbers -> 2 n: the nodes that are accepted, filled up
        with -1, then the token drawn at each; -1 for one where the largest logit is not finite."""
        write, tensors, accepted = self._kept.get(len(logits)) or self._keep(len(logits))
        write(*asked)
        tensor = self._device.tensor(logits)
        start = perf_counter()
        self._kernel(tensor, *tensors)
        self.seconds += perf_counter() - start
        return accepted.tolist()

    def _keep(self, n: int) -> tuple[Callable[..., None], list[Any], memoryview]:
        asked, accepted = self._device.inputs(((3 + 3 * n,),), "float64"), self._device.inputs(((2, n),))
        write = partial(Struct(f"{3 + 3 * n}d").pack_into, asked.arrays[0], 0)
        self._kept[n] = write, asked.tensors + accepted.tensors, memoryview(accepted.arrays[0].reshape(-1))
        return self._kept[n]
