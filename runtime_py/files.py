"""Reading what the user hands in, and writing results so that no half-written file remains."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from blockffn_mlc.errors import UserError

CACHE_VARIABLE = "BLOCKFFN_CACHE"


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, line ends as they are, a byte order mark left out. Raises UserError when it cannot be read."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert the file to UTF-8") from None


def read_ids(path: str | Path) -> list[int]:
    """Token ids: a JSON list of integers, or a one-dimensional integer .npy. Raises UserError otherwise."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                ids = np.lib.format.read_array(file, allow_pickle=False)
            good = ids.ndim == 1 and ids.dtype.kind in "iu"
            ids = ids.tolist() if good else f"{ids.dtype} {list(ids.shape)}"
        else:
            ids = json.loads(path.read_text(encoding="utf-8-sig"))
            good = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, EOFError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not readable as token ids ({error})") from None
    if not good:
        raise UserError(f"{path}: expected a flat list of integer token ids, found {ids!r:.80}")
    return ids


def check_output(path: str | Path) -> None:
    """Raises UserError, before work starts, when ``path`` is no file or its folder is missing."""
    path = Path(path)
    if not path.name or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: not a regular file; name a file to write")
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written (no such folder)")


def cache_folder() -> Path:
    """$BLOCKFFN_CACHE, else ``blockffn-mlc`` in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "blockffn-mlc"


def not_private(path: Path) -> str | None:
    """How somebody else may have written ``path``, as words behind its name; None where only this user can have."""
    if not hasattr(os, "geteuid"):
        return None  # Windows
    found = path.stat()
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to this one ({os.geteuid()})"
    return "can be written by other users" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it on success and removed on failure. Raises UserError
    when ``path`` cannot be written, or exists and is not a regular file."""
    check_output(path)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_array(path: str | Path | None, shape: tuple[int, ...]) -> Iterator[np.ndarray | None]:
    """A float32 .npy of ``shape`` to fill, mapped to disk and put in place when complete; None without a path."""
    if path is None:
        yield None
        return
    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        _reserve(temporary)
        yield array
        array.flush()


def _reserve(path: Path) -> None:
    """Claim the disk space of a sparse file: a mapped page without space would end the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
