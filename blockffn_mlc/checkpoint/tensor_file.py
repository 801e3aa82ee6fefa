"""What every weights file offers, and the checks they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError

DTYPES = ("bfloat16", "float16", "float32")


class TensorFile(Protocol):
    """One weights file, opened by its header: no weight is read before ``read_rows``."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis as float32. Raises UserError on non-finite values."""


def check_stored(file: TensorFile, name: str, shape: tuple[int, ...]) -> None:
    """Raise UserError unless tensor ``name`` of ``file`` has ``shape`` and a dtype of ``DTYPES``."""
    if file.shapes[name] != shape:
        raise UserError(f"{file.path}: tensor {name!r}: expected shape {list(shape)}, found {list(file.shapes[name])}")
    if file.dtypes[name] not in DTYPES:
        raise UserError(f"{file.path}: tensor {name!r}: expected dtype {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, "
                        f"found {file.dtypes[name]}")


def check_finite(values: np.ndarray, name: str, path: Path) -> None:
    """Raise UserError if a weight is NaN or infinite."""
    # The extremes propagate NaN, and unlike isfinite(values) they need no array of flags.
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise UserError(f"{path}: tensor {name!r}: expected finite weights, found NaN or infinity; "
                        "the checkpoint is damaged, convert or download it again")


def unreadable(path: Path, kind: str, error: Any) -> UserError:
    """The UserError for a file that is not a complete, well-formed ``kind`` file."""
    reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
    return UserError(f"{path}: expected a complete {kind} file, found a truncated, corrupt or unreadable one "
                     f"({reason}); download or convert it again")
