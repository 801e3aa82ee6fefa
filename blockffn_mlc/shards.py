"""Weights on disk: which tensor goes into which shard, and writing the shards so that an interrupted
build can go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm.relax.frontend.nn as nn

from schedules.layout import LAYOUT_VERSION

from .layers import READ

INDEX = "tensor-cache.json"
ALIGNMENT = 64  # bytes: the runtime maps shards and uses the tensors in place
SHARD_BYTES = 32 << 20  # MLC's cap; a larger tensor gets a shard of its own


class Source(Protocol):
    """Where weights come from: a checkpoint, or random numbers."""

    def read(self, name: str) -> np.ndarray:
        """One tensor by canonical name, float32."""


@dataclass(frozen=True)
class Tensor:
    """One weight and its place in a shard. ``read(source)`` makes the array to store."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    read: Callable[[Source], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Shard:
    """One file ``params_shard_N.bin``; tensors at aligned offsets, gaps are zero."""

    file: str
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return _aligned(self.tensors[-1].offset + self.tensors[-1].nbytes)

    @property
    def weight_bytes(self) -> int:
        """``nbytes`` without the gaps."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def record(self) -> dict[str, Any]:
        """The shard's entry in tensor-cache.json (MLC contract, artifact layout)."""
        return {
            "dataPath": self.file, "format": "raw-shard", "nbytes": self.nbytes,
            "records": [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "format": "raw",
                         "nbytes": t.nbytes, "byteOffset": t.offset} for t in self.tensors]}


class Journal:
    """What an unfinished build has completed: a line with the identity of the build, then one per finished
    shard with its MD5. It says which shards to keep."""

    FILE = "build.journal"

    def __init__(self, folder: Path, identity: str) -> None:
        """Open the journal of ``folder``. One of another build, or an unreadable one, is started anew."""
        self._path = folder / self.FILE
        lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
        self.finished: dict[str, str] = {}
        if lines[:1] == [identity]:
            self.finished = dict(line.split(" ", 1) for line in lines[1:] if line.count(" ") == 1)
        else:
            _replace_text(self._path, identity + "\n")

    def remove(self) -> None:
        """The build is finished."""
        self._path.unlink()

    def add(self, file: str, md5: str) -> None:
        """Record a shard that has its final name."""
        self.finished[file] = md5
        with open(self._path, "a", encoding="utf-8") as journal:
            journal.write(f"{file} {md5}\n")
            journal.flush()
            os.fsync(journal.fileno())


def plan_shards(parameters: list[tuple[str, nn.Parameter]]) -> list[Shard]:
    """Pack the weights into shards in argument order."""
    groups: list[list[Tensor]] = []
    end = SHARD_BYTES
    for name, parameter in parameters:
        tensor = Tensor(name, tuple(int(size) for size in parameter.shape), str(parameter.dtype), _aligned(end),
                        parameter.attrs[READ])
        if tensor.offset + tensor.nbytes > SHARD_BYTES:
            groups.append([])
            tensor = replace(tensor, offset=0)
        groups[-1].append(tensor)
        end = tensor.offset + tensor.nbytes
    return [Shard(f"params_shard_{i}.bin", tuple(group)) for i, group in enumerate(groups)]


def fingerprint(shards: list[Shard], source: str) -> str:
    """Identifies what a set of shards holds: the plan, the order of weights in memory, the source's content."""
    plan = json.dumps([LAYOUT_VERSION, source, [shard.record() for shard in shards]])
    return hashlib.sha256(plan.encode()).hexdigest()


def adopt_shards(folder: Path, shards: list[Shard], other: Path, journal: Journal) -> None:
    """Take the shards of the artifact ``other``, which hold the same bytes, as finished: linked where the file system
    can, else copied. Raises OSError."""
    records = json.loads((other / INDEX).read_text(encoding="utf-8"))["records"]
    for shard, record in zip(shards, records):
        if shard.file not in journal.finished:
            link_or_copy(other / shard.file, folder / shard.file)
            journal.add(shard.file, record["md5sum"])


def link_or_copy(source: Path, path: Path) -> None:
    """Let ``path`` be the file ``source``: linked where the file system can, else copied. Raises OSError."""
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def write_shards(folder: Path, shards: list[Shard], source: Source, journal: Journal, jobs: int,
                 advance: Callable[[int], None]) -> int:
    """Write every shard, ``jobs`` at a time, and tensor-cache.json. Returns how many the journal let us keep.

    ``advance(bytes)`` is called for every tensor stored or kept. Raises UserError from the source, OSError.
    """

    def finish(shard: Shard) -> tuple[bool, str]:
        path = folder / shard.file
        md5 = journal.finished.get(shard.file)
        if md5 is not None and path.is_file() and _md5(path) == md5:
            advance(shard.weight_bytes)
            return True, md5
        _write_shard(path, shard, source, advance)
        md5 = _md5(path)
        journal.add(shard.file, md5)
        return False, md5

    pool = ThreadPoolExecutor(jobs)
    try:
        results = list(pool.map(finish, shards))
    finally:
        pool.shutdown(cancel_futures=True)
    total = sum(shard.weight_bytes for shard in shards)
    count = sum(math.prod(tensor.shape) for shard in shards for tensor in shard.tensors)
    index = {"metadata": {"ParamSize": sum(len(shard.tensors) for shard in shards), "ParamBytes": total,
                          "BitsPerParam": total * 8 / count},
             "records": [shard.record() | {"md5sum": md5} for shard, (_, md5) in zip(shards, results)]}
    _replace_text(folder / INDEX, json.dumps(index, indent=1))
    return sum(kept for kept, _ in results)


def _write_shard(path: Path, shard: Shard, source: Source, advance: Callable[[int], None]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        for tensor in shard.tensors:
            values = tensor.read(source)
            if values.shape != tensor.shape or values.dtype != tensor.dtype:
                raise AssertionError(f"{tensor.name}: planned {tensor.dtype} {tensor.shape}, "
                                     f"made {values.dtype} {values.shape}")
            file.seek(tensor.offset)
            file.write(memoryview(np.ascontiguousarray(values)).cast("B"))
            advance(tensor.nbytes)
        file.truncate(shard.nbytes)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
