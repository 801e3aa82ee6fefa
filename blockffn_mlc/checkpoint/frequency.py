"""The frequency list of a draft model (FR-Spec, arXiv 2502.14856): the token ids that its head can name."""

from __future__ import annotations

import json
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np

from ..errors import UserError

_MAX_BYTES_PER_TOKEN = 64  # of a file, for ids of the whole vocabulary in the wordiest format
# Of the pickle format: lists of integers are made of these, nothing that names, calls or builds anything else.
_INTEGERS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1"}
_LISTS = {"EMPTY_LIST", "LIST"}
_STRUCTURE = {"PROTO", "FRAME", "MARK", "APPEND", "APPENDS", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}


def find_frequent_tokens(folder: Path, vocabulary: int, count: int | None) -> tuple[int, ...] | None:
    """The list ``freq_N`` (``.json``, ``.npy``, ``.pkl`` or ``.pt``) of a draft's folder, its first ``count`` ids if
    given; None without a list. ``vocabulary``: the target's size. Raises UserError."""
    paths = sorted(folder.glob("freq_*"))
    if len(paths) > 1:
        named = [path for path in paths if path.stem == f"freq_{count}"]
        if len(named) != 1:
            raise UserError(f"{folder}: expected one frequency list, found {', '.join(path.name for path in paths)}; "
                            "choose one by its number with --draft-vocab, or move the others away")
        paths = named
    if not paths:
        if count is not None:
            raise UserError(f"--draft-vocab {count}: expected a frequency list freq_N{', freq_N'.join(_READERS)} in "
                            f"{folder}, found none")
        return None
    if paths[0].suffix not in _READERS:
        raise UserError(f"{paths[0]}: expected a frequency list freq_N{', freq_N'.join(_READERS)}, found another kind "
                        "of file; save it as a JSON list of integers, or move it away")
    tokens = read_frequent_tokens(paths[0], vocabulary)
    if count is not None and not 0 < count <= len(tokens):
        raise UserError(f"--draft-vocab {count}: expected 1 to {len(tokens)}, the number of ids in {paths[0]}")
    return tokens[:count]


def read_frequent_tokens(path: Path, vocabulary: int) -> tuple[int, ...]:
    """Distinct token ids below ``vocabulary``, in the order of the file. Raises UserError."""
    try:
        size = path.stat().st_size
        if size > vocabulary * _MAX_BYTES_PER_TOKEN + 4096:
            raise ValueError(f"{size} bytes are more than ids of {vocabulary} tokens can take")
        ids = _READERS[path.suffix](path)
    except (ValueError, OSError, EOFError, IndexError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: expected a list of token ids ({error}); save it as a JSON list of integers") from None
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise UserError(f"{path}: expected a list of token ids, found {ids!r:.80}")
    seen: dict[int, int] = {}
    for place, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise UserError(f"{path}: expected token ids from 0 to {vocabulary - 1}, the model's vocabulary, found "
                            f"{token} at place {place}")
        if token in seen:
            raise UserError(f"{path}: expected distinct token ids, found {token} at places {seen[token]} and {place}")
        seen[token] = place
    return tuple(ids)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_npy(path: Path) -> Any:
    # Mapped: a header that promises more than the file holds is refused before memory is taken.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"the array holds {array.dtype} {list(array.shape)}")
    return array.tolist()


def _read_pickle(path: Path) -> Any:
    return _unpickled(path.read_bytes())


def _read_torch(path: Path) -> Any:
    """What ``torch.save`` makes of a list: a pickle in a zip archive."""
    try:
        with ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if len(entries) != 1 or entries[0].compress_type != ZIP_STORED:  # compressed it could grow without limit
                raise ValueError("expected one data.pkl, stored as it is")
            return _unpickled(archive.read(entries[0]))
    except (BadZipFile, RuntimeError) as error:  # the latter where it is encrypted
        raise ValueError(f"no archive as torch.save writes: {error}") from None


def _unpickled(data: bytes) -> Any:
    """A pickled list of integers, read off the instructions of the pickle, none of which is carried out."""
    ids, lists = [], 0
    for opcode, argument, _ in pickletools.genops(data):
        lists += opcode.name in _LISTS
        if opcode.name in _INTEGERS:
            ids.append(argument)
        elif opcode.name not in _LISTS | _STRUCTURE or lists > 1:
            raise ValueError(f"the pickle holds something else, refused at its instruction {opcode.name}")
    return ids if lists else None


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _read_json, ".npy": _read_npy, ".pkl": _read_pickle, ".pt": _read_torch}
