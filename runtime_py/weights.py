"""The weights of an artifact: read into one piece of memory, or mapped (``tensor-cache.json``, MLC's layout)."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from .jsonfile import int_list, path_inside, read_json, required

INDEX = "tensor-cache.json"
ALIGNMENT = 64  # bytes: what compiled kernels assume of every tensor
READ_BYTES = 16 << 20  # bytes that one thread reads at a time
_READERS = 4
_DTYPES = ("float32", "float16", "uint32", "int32", "uint16", "int16", "uint8", "int8")


def load_weights(folder: Path, mmap: bool = False) -> dict[str, np.ndarray]:
    """All weights by name, as views into one piece of anonymous memory; with ``mmap`` into privately mapped
    shards (copy on write, nothing is read yet).

    Every record is checked before anything is read: shard sizes, tensor bounds, shapes, dtypes, alignment,
    unique names. Raises UserError naming the file and tensor, with the expected and actual values.
    """
    index = folder / INDEX
    records = required(read_json(index), "records", list, index)
    paths, sizes = zip(*(_checked_shard(folder, shard, index) for shard in records)) if records else ((), ())
    shards = [_map(path, size) for path, size in zip(paths, sizes)] if mmap else _allocate(sizes, index)
    weights: dict[str, np.ndarray] = {}
    for shard, data in zip(records, shards):
        for record in required(shard, "records", list, index):
            name, tensor = _view(record, data, index)
            if name in weights:
                raise UserError(f"{index}: tensor {name!r} is recorded twice; rebuild the artifact")
            weights[name] = tensor
    if not mmap:
        _read(paths, shards)
    return weights


def check_weights(weights: dict[str, np.ndarray], params: list[dict[str, Any]], folder: Path) -> list[np.ndarray]:
    """The weights in the order of the library's ``params`` metadata.

    Raises UserError listing missing or surplus names, or naming the first tensor whose shape or
    dtype differs from what the library was compiled for.
    """
    index = folder / INDEX
    names = [required(param, "name", str, "_metadata") for param in params]
    for kind, differing in (("missing", set(names) - set(weights)), ("surplus", set(weights) - set(names))):
        if differing:
            shown = ", ".join(sorted(differing)[:4]) + (", ..." if len(differing) > 4 else "")
            raise UserError(f"{index}: {len(differing)} {kind} tensor(s): {shown}; weights and model library "
                            "come from different builds: rebuild the artifact")
    for name, param in zip(names, params, strict=True):
        tensor = weights[name]
        found, expected = (tensor.dtype.name, list(tensor.shape)), (param.get("dtype"), param.get("shape"))
        if found != expected:
            raise UserError(f"{index}: tensor {name!r}: the model library expects {expected[0]} {expected[1]}, "
                            f"found {found[0]} {found[1]}; rebuild the artifact")
    return [weights[name] for name in names]


def check_digests(folder: Path) -> None:
    """Read every shard of the artifact and compare its MD5 with the one recorded for it, if any. Raises UserError."""
    index = folder / INDEX
    for shard in required(read_json(index), "records", list, index):
        path, size = _checked_shard(folder, shard, index)
        found = hashlib.md5(_map(path, size), usedforsecurity=False).hexdigest()
        if found != shard.get("md5sum", found):
            raise UserError(f"{path}: its MD5 is {found}, {INDEX} says {shard['md5sum']}; the file is damaged: copy it "
                            "again or rebuild the artifact")


def _checked_shard(folder: Path, shard: Any, index: Path) -> tuple[Path, int]:
    """Path and size in bytes."""
    if not isinstance(shard, dict):
        raise UserError(f"{index}: expected a list of shard objects in 'records', found {shard!r:.80}")
    path = path_inside(folder, required(shard, "dataPath", str, index), index)
    expected = required(shard, "nbytes", int, index)
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None
    if actual != expected:
        raise UserError(f"{path}: expected {expected} bytes, found {actual}; the file is "
                        f"{'truncated' if actual < expected else 'too long'}: copy it again or rebuild the artifact")
    return path, actual


def _map(path: Path, size: int) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, "c") if size else np.empty(0, np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from None


def _allocate(sizes: Sequence[int], index: Path) -> list[np.ndarray]:
    """Uninitialised memory for all shards in one allocation, for which numpy asks Linux for huge pages: file
    mappings get none, and reading them misses the TLB. Pages are taken when the files are read into them."""
    *starts, total = itertools.accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0)
    try:
        memory = np.empty(total + ALIGNMENT, np.uint8)
    except MemoryError:
        raise UserError(f"{index}: no memory for {total} bytes of weights; use them in place with --mmap") from None
    memory = memory[-memory.ctypes.data % ALIGNMENT:]
    return [memory[start:start + size] for start, size in zip(starts, sizes)]


def _read(paths: Sequence[Path], shards: Sequence[np.ndarray]) -> None:
    """Fill ``shards`` from their files, several pieces at a time."""
    def read(path: Path, start: int, piece: np.ndarray) -> None:
        try:
            with path.open("rb") as file:
                file.seek(start)
                count = file.readinto(piece)
        except OSError as error:
            raise _unreadable(path, error) from None
        if count != piece.size:
            raise UserError(f"{path}: ended while it was read; copy it again or rebuild the artifact")

    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        pieces = [pool.submit(read, path, start, data[start:start + READ_BYTES])
                  for path, data in zip(paths, shards) for start in range(0, data.size, READ_BYTES)]
        for piece in pieces:
            piece.result()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be opened ({error.strerror}); {INDEX} lists it: "
                     "copy the whole artifact or rebuild it")


def _view(record: Any, data: np.ndarray, index: Path) -> tuple[str, np.ndarray]:
    if not isinstance(record, dict):
        raise UserError(f"{index}: expected a list of tensor objects in 'records', found {record!r:.80}")
    name = required(record, "name", str, index)
    where = f"{index}: tensor {name!r}"
    shape, dtype = int_list(record, "shape", where), required(record, "dtype", str, where)
    offset, nbytes = required(record, "byteOffset", int, where), required(record, "nbytes", int, where)
    if dtype not in _DTYPES:
        raise UserError(f"{where}: field 'dtype': expected one of {', '.join(_DTYPES)}, found {dtype!r}")
    if required(record, "format", str, where) != "raw":
        raise UserError(f"{where}: field 'format': expected 'raw', found {record['format']!r}; "
                        "this runtime uses weights in place: rebuild the artifact with build.py")
    if nbytes != math.prod(shape) * np.dtype(dtype).itemsize:
        raise UserError(f"{where}: {dtype} {shape} takes {math.prod(shape) * np.dtype(dtype).itemsize} bytes, "
                        f"field 'nbytes' says {nbytes}")
    if offset < 0 or offset + nbytes > data.size:
        raise UserError(f"{where}: bytes {offset} to {offset + nbytes} lie outside its shard of {data.size} bytes")
    if offset % ALIGNMENT:
        raise UserError(f"{where}: offset {offset} is not a multiple of {ALIGNMENT}; rebuild the artifact")
    return name, data[offset:offset + nbytes].view(dtype).reshape(shape)
