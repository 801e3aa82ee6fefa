"""Weights in a ``.safetensors`` file, read without torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .tensor_file import check_finite, unreadable

# bfloat16 is unknown to numpy: it is read as the upper half of a float32's bits.
_STORAGE = {"bfloat16": np.dtype("<u2"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class SafetensorsFile:
    """A ``.safetensors`` file. Opening validates its header against the file's size (by the safetensors
    library: lengths, offsets, overlaps); every read opens the file anew and maps nothing, so that memory
    holds one tensor at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="np"):
                pass
            with open(path, "rb") as file:
                header_size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_size))
        except (SafetensorError, OSError, ValueError) as error:
            raise unreadable(path, "safetensors", error) from None
        header.pop("__metadata__", None)
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.dtypes = {name: _DTYPES.get(entry["dtype"], entry["dtype"]) for name, entry in header.items()}
        self._offsets = {name: 8 + header_size + entry["data_offsets"][0] for name, entry in header.items()}

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 as float32 ``[stop - start, ...]``. Raises UserError on non-finite values."""
        storage = _STORAGE[self.dtypes[name]]
        shape = (stop - start, *self.shapes[name][1:])
        row_bytes = math.prod(shape[1:]) * storage.itemsize
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offsets[name] + start * row_bytes)
                raw = np.fromfile(file, storage, math.prod(shape))
        except OSError as error:
            raise unreadable(self.path, "safetensors", error) from None
        if raw.size != math.prod(shape):
            raise unreadable(self.path, "safetensors", f"tensor {name!r} ends early")
        if self.dtypes[name] == "bfloat16":
            bits = raw.astype(np.uint32)
            bits <<= 16
            values = bits.view(np.float32)
        else:
            values = raw.astype(np.float32, copy=False)
        check_finite(values, name, self.path)
        return values.reshape(shape)
