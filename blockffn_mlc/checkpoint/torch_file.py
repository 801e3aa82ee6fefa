"""Weights in a PyTorch ``.bin`` file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .tensor_file import check_finite, unreadable

_KIND = "PyTorch (torch.save, zip format)"


class TorchFile:
    """A ``.bin`` file as written by ``torch.save``: a dictionary of dense tensors.

    It is loaded with ``weights_only`` (no code of the file runs) and memory-mapped. Every read maps the file
    anew and lets go of it, so that pages of earlier tensors do not stay in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._check_archive()
        tensors = self._load()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 as float32 ``[stop - start, ...]``. Raises UserError on non-finite values."""
        import torch

        values = self._load()[name][start:stop].to(torch.float32, copy=True).contiguous().numpy()
        check_finite(values, name, self.path)
        return values

    def _check_archive(self) -> None:
        """Raise UserError unless the file is a whole zip archive that can be mapped, that is, not compressed."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise unreadable(self.path, _KIND, error) from None
        if compressed:
            raise UserError(f"{self.path}: expected an uncompressed archive as torch.save writes it, found compressed "
                            "entries; save the file anew with torch.save")

    def _load(self) -> dict[str, Any]:
        try:
            import torch
        except ImportError:
            raise UserError(f"{self.path}: reading a PyTorch .bin file needs torch, which is not installed; "
                            "run: pip install 'blockffn-mlc[torch]'") from None
        try:
            tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise UserError(f"{self.path}: expected only tensors, found other Python objects (refused, because loading "
                            "them could run code) or a corrupt file; save it anew as a dictionary of tensors") from None
        except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
            raise unreadable(self.path, _KIND, error) from None
        if not isinstance(tensors, dict):
            raise UserError(f"{self.path}: expected a dictionary of tensors, found {type(tensors).__name__}")
        for name, value in tensors.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise UserError(f"{self.path}: entry {name!r}: expected a tensor, found {type(value).__name__}")
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise UserError(f"{self.path}: tensor {name!r}: expected a dense tensor with data, "
                                f"found layout {value.layout} on device {value.device.type}")
        return tensors
