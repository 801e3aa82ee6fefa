"""From a source of weights to an artifact folder: plan, then compile, convert and put in place."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import chat_config
from .compile import Graph, build_graph, compile_graph, planned_bytes
from .config import BlockFFNConfig
from .errors import UserError
from .layers import Build
from .progress import Progress
from .quantization import quantization
from .shards import Shard, Source, fingerprint, plan_shards, write_shards
from .target import Target

DEFAULT_PREFILL_CHUNK = 512
_LOCK = ".lock"


@dataclass(frozen=True)
class Plan:
    """Everything decided before work starts."""

    build: Build
    target: Target
    graph: Graph
    shards: list[Shard]
    library: str

    def summary(self) -> dict[str, Any]:
        """Functions, kernels, sizes and memory at run time, in bytes."""
        weights = sum(tensor.nbytes for shard in self.shards for tensor in shard.tensors)
        return {
            "target": self.target.name, "host": self.target.host, "quantization": self.build.quantization.name,
            "context_window": self.build.context_window, "prefill_chunk": self.build.prefill_chunk,
            "functions": self.graph.functions(),
            "kernels": {name: str(func.attrs[self.build.kernels.ORIGIN])
                        for name, func in sorted(self.graph.kernels().items())},
            "tensors": sum(len(shard.tensors) for shard in self.shards), "shards": len(self.shards),
            "weight_bytes": weights, "cache_bytes": self.graph.cache_bytes,
            "workspace_bytes": planned_bytes(self.graph),
        }


def make_plan(config: BlockFFNConfig, target: Target, quantization_name: str, context_window: int | None = None,
              prefill_chunk: int | None = None) -> Plan:
    """Check the options against the model and describe the build. Raises UserError."""
    context = context_window or config.max_position_embeddings
    chunk = prefill_chunk or min(DEFAULT_PREFILL_CHUNK, context)
    for option, value, limit, what in (
            ("--context-window", context, config.max_position_embeddings, "the model's max_position_embeddings"),
            ("--prefill-chunk", chunk, context, "the context window")):
        if not 0 < value <= limit:
            raise UserError(f"{option} {value}: expected 1 to {limit}, {what}")
    build = Build(config, quantization(quantization_name, target.name, target.kernels.FORMATS),
                  target.kernels, target.tiles, context, chunk)
    graph = build_graph(build)
    library = f"lib/blockffn-{build.quantization.name}-{target.name}{target.library_suffix}"
    return Plan(build, target, graph, plan_shards(graph.parameters), library)


def build_artifact(plan: Plan, source: Source, folder: Path | None, identity: str, out: Path, jobs: int,
                   progress: Progress) -> dict[str, Any]:
    """Write the artifact ``out``. Returns figures about what was done.

    ``folder``: the checkpoint's, for the tokenizer (None: no tokenizer). ``identity`` names the source's
    content. Everything is written beside ``out`` and renamed at the end; after an interruption the next
    build of the same thing keeps the shards that are complete. Raises UserError.
    """
    _check_destination(out)
    with _staging(out) as staging:
        with progress.step("compile"):
            library = staging / plan.library
            library.parent.mkdir(exist_ok=True)
            executable = compile_graph(plan.graph, plan.target.tvm_target)
        with progress.step("link"):
            executable.export_library(str(library))
        total = sum(tensor.nbytes for shard in plan.shards for tensor in shard.tensors)
        with progress.bytes("weights", total) as advance:
            kept = write_shards(staging, plan.shards, source, fingerprint(plan.shards, identity), jobs, advance)
        chat_config.copy_tokenizer(folder, staging)
        config = chat_config.chat_config(plan.build, plan.target.name, plan.target.host, plan.library, folder)
        (staging / chat_config.FILE).write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
        _put_in_place(staging, out)
    return {"artifact": str(out), "kept_shards": kept, **plan.summary()}


def source_identity(folder: Path) -> str:
    """Names a checkpoint's content without reading it: path, size and time of change of every file."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([str(folder.resolve()), facts]).encode()).hexdigest()


def _check_destination(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"-o {out}: exists and is not a folder; choose another name")
    if out.is_dir() and any(out.iterdir()) and not (out / chat_config.FILE).is_file():
        raise UserError(f"-o {out}: folder is not empty and holds no artifact ({chat_config.FILE}); "
                        "choose another name or remove it")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """The folder a build works in, locked against a second build of the same artifact. It stays after an
    interruption or error only if it holds finished shards."""
    staging = out.with_name(f"{out.name}.partial")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = open(staging / _LOCK, "w")
    except OSError as error:
        raise UserError(f"-o {out}: cannot write to {staging} ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"-o {out}: another build is writing it; wait for it or choose another name") from None
        for leftover in staging.rglob("*.tmp"):
            leftover.unlink()
        try:
            yield staging
        finally:
            if not any(staging.glob("params_shard_*.bin")):
                shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: Path, out: Path) -> None:
    """Rename the finished folder to its name, replacing an earlier artifact."""
    (staging / _LOCK).unlink()
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(staging, out)
    shutil.rmtree(old, ignore_errors=True)
