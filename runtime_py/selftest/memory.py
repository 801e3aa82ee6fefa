"""Tensors on a device that tell what was written, and what was written outside of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..devices import Device
from ..tvm_runtime import aligned_zeros, load_runtime

GUARD = 256  # bytes


class Guarded:
    """A tensor beside poisoned memory: behind it, on this processor also in front of it. (Elsewhere a kernel's argument
    begins where its allocation begins.)"""

    def __init__(self, device: Device, content: np.ndarray) -> None:
        self._device, self._content = device, content
        self._start = 0 if device.copies else GUARD
        self._poison = poison(content.dtype)
        memory = aligned_zeros((self._start + content.nbytes + GUARD,), np.uint8)
        memory[...] = self._poison
        inside = memory[self._start:self._start + content.nbytes].view(content.dtype).reshape(content.shape)
        inside[...] = content
        if not device.copies:
            self._memory, self.tensor = memory, device.tensor(inside)
        else:
            tvm = load_runtime()
            self._memory = device.tensor(memory)
            view = tvm.get_global_func("runtime.TVMTensorCreateView")
            self.tensor = view(self._memory, tvm.Shape(content.shape), tvm.dtype(content.dtype.name), 0)

    def read(self) -> tuple[np.ndarray, bool]:
        """What the tensor holds now, and whether the memory beside it is untouched."""
        memory: Any = self._memory
        memory = memory if isinstance(memory, np.ndarray) else self._device.host(memory)
        stop = self._start + self._content.nbytes
        outside = np.concatenate([memory[:self._start], memory[stop:]])
        inside = memory[self._start:stop].view(self._content.dtype).reshape(self._content.shape)
        return inside, bool((outside == self._poison).all())

    def changed(self) -> bool:
        """Whether the tensor holds other bytes than at first."""
        inside, _ = self.read()
        return not np.array_equal(bits_of(inside), bits_of(self._content))


def poison(dtype: np.dtype | str) -> int:
    """Every byte of memory that nobody wrote: floats are NaN, of a kind that no arithmetic makes; integers are huge."""
    return 0xFF if np.dtype(dtype).kind == "f" else 0x5A


def poisoned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array that nobody wrote."""
    return np.full((*shape, np.dtype(dtype).itemsize), poison(dtype), np.uint8).view(dtype)[..., 0]


def bits_of(array: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers, so that NaN equals itself."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
