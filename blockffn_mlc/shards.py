"""Weights on disk: which tensor goes into which shard, and writing the shards so that an interrupted
build can go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm.relax.frontend.nn as nn

from .layers import READ

INDEX = "tensor-cache.json"
ALIGNMENT = 64  # bytes: the runtime maps shards and uses the tensors in place
SHARD_BYTES = 32 << 20  # MLC's cap; a larger tensor gets a shard of its own
_JOURNAL = "build.json"


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

    def record(self) -> dict[str, Any]:
        """The shard's entry in tensor-cache.json (MLC contract, artifact layout)."""
        return {
            "dataPath": self.file, "format": "raw-shard", "nbytes": self.nbytes,
            "records": [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "format": "raw",
                         "nbytes": t.nbytes, "byteOffset": t.offset} for t in self.tensors]}


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
    """Identifies what a set of shards holds: their plan and the identity of the source."""
    plan = json.dumps([source, [shard.record() for shard in shards]])
    return hashlib.sha256(plan.encode()).hexdigest()


def write_shards(folder: Path, shards: list[Shard], source: Source, identity: str, jobs: int,
                 advance: Callable[[int], None]) -> int:
    """Write every shard and tensor-cache.json; returns how many shards an earlier, interrupted build had left.

    A finished shard has its final name, hence what is there under the same ``identity`` is kept.
    ``advance(bytes)`` is called for every tensor stored or kept. Raises UserError from the source.
    """
    journal = folder / _JOURNAL
    if not journal.exists() or json.loads(journal.read_text()).get("identity") != identity:
        for stale in folder.glob("params_shard_*"):
            stale.unlink()
        _replace_text(journal, json.dumps({"identity": identity}))
    kept = 0
    with ThreadPoolExecutor(jobs) as pool:
        for shard in shards:
            path = folder / shard.file
            if path.exists() and path.stat().st_size == shard.nbytes:
                kept += 1
                advance(sum(tensor.nbytes for tensor in shard.tensors))
            else:
                _write_shard(path, shard, source, pool, advance)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    count = sum(math.prod(tensor.shape) for shard in shards for tensor in shard.tensors)
    index = {"metadata": {"ParamSize": sum(len(shard.tensors) for shard in shards), "ParamBytes": total,
                          "BitsPerParam": total * 8 / count},
             "records": [shard.record() for shard in shards]}
    _replace_text(folder / INDEX, json.dumps(index, indent=1))
    journal.unlink()
    return kept


def _write_shard(path: Path, shard: Shard, source: Source, pool: ThreadPoolExecutor,
                 advance: Callable[[int], None]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.truncate(shard.nbytes)

        def store(tensor: Tensor) -> None:
            values = tensor.read(source)
            if values.shape != tensor.shape or values.dtype != tensor.dtype:
                raise AssertionError(f"{tensor.name}: planned {tensor.dtype} {tensor.shape}, "
                                     f"made {values.dtype} {values.shape}")
            _write_at(file.fileno(), memoryview(np.ascontiguousarray(values)).cast("B"), tensor.offset)
            advance(tensor.nbytes)

        for _ in pool.map(store, shard.tensors):
            pass
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
