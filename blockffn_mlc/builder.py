"""From a source of weights to an artifact folder: plan, then compile, convert and put in place."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tvm.support import cc

from .chat_config import FILE as CHAT_CONFIG
from .chat_config import chat_config, copy_tokenizer
from .checkpoint.draft import Draft
from .compile import Graph, build_graph, compile_graph, planned_bytes
from .config import BlockFFNConfig
from .eagle import describe_draft
from .errors import UserError
from .kernel_calls import FILE as KERNEL_CALLS
from .kernel_calls import describe_kernels
from .layers import Build
from .progress import Progress
from .quantization import activations, quantization
from .shards import Shard, Source, fingerprint, plan_shards, write_shards
from .staging import check_destination, staging_folder
from .target import Target

DEFAULT_PREFILL_CHUNK = 512
TOKEN_STREAM = "token_stream.json"


@dataclass(frozen=True)
class Plan:
    """Everything decided before work starts. ``chat``: the contents of mlc-chat-config.json."""

    build: Build
    target: Target
    graph: Graph
    shards: list[Shard]
    library: str
    chat: dict[str, Any]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(shard.weight_bytes for shard in self.shards)

    def summary(self) -> dict[str, Any]:
        """Functions, kernels, sizes and memory at run time, in bytes."""
        build = self.build
        memory = {
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.graph.cache_bytes,
            "workspace_bytes": planned_bytes(self.graph),
            "output_bytes": 4 * (build.config.vocab_size + build.prefill_chunk * (
                build.config.num_hidden_layers * build.config.num_experts
                + (build.config.hidden_size if build.draft else 0))),
        }
        return {
            "target": self.target.name, "host": self.target.host, "quantization": build.quantization.name,
            "activations": build.activations, "context_window": build.context_window,
            "prefill_chunk": build.prefill_chunk,
            **({"draft_vocab": describe_draft(build)["vocab_size"]} if build.draft else {}),
            "functions": self.graph.functions(),
            "kernels": {name: str(func.attrs[build.kernels.ORIGIN])
                        for name, func in sorted(self.graph.kernels().items())},
            "tensors": sum(len(shard.tensors) for shard in self.shards), "shards": len(self.shards),
            **memory, "total_bytes": sum(memory.values()),
        }


def make_plan(config: BlockFFNConfig, target: Target, quantization_name: str, context_window: int | None = None,
              prefill_chunk: int | None = None, folder: Path | None = None,
              activation_format: str | None = None, draft: Draft | None = None) -> Plan:
    """Check the options against the model and describe the build. ``folder``: the checkpoint's, for tokenizer
    and generation defaults (None: there are none). ``activation_format``: one of schedules.activations (None: the
    fastest). ``draft``: the draft model to compile into the same library. Raises UserError."""
    context = config.max_position_embeddings if context_window is None else context_window
    chunk = min(DEFAULT_PREFILL_CHUNK, context) if prefill_chunk is None else prefill_chunk
    for option, value, limit, what in (
            ("--context-window", context, config.max_position_embeddings, "the model's max_position_embeddings"),
            ("--prefill-chunk", chunk, context, "the context window")):
        if not 0 < value <= limit:
            raise UserError(f"{option} {value}: expected 1 to {limit}, {what}")
    weights = quantization(quantization_name, target.name, target.kernels.FORMATS)
    build = Build(config, weights, activations(activation_format, weights, target), target.kernels, target.tiles,
                  context, chunk, draft)
    graph = build_graph(build)
    library = f"lib/blockffn-{build.quantization.name}-{target.name}{target.library_suffix}"
    chat = chat_config(build, target.name, target.host, library, folder)
    return Plan(build, target, graph, plan_shards(graph.parameters), library, chat)


def build_artifact(plan: Plan, source: Source, folder: Path | None, identity: str, out: Path, jobs: int,
                   progress: Progress, token_stream: np.ndarray | None = None) -> dict[str, Any]:
    """Write the artifact ``out``. Returns figures about what was done.

    ``folder``: the checkpoint's, as for ``make_plan``. ``identity`` names the source's content.
    ``token_stream`` int32 [n]: the text of synthetic weights. Everything is written beside ``out`` and renamed at
    the end; after an interruption the next build of the same thing keeps the shards that are complete.
    Raises UserError, OSError.
    """
    given, out = out, Path(os.path.abspath(out))
    check_destination(out)
    if not cc.get_cc():
        raise UserError("no C++ compiler found to link the library; install one (c++, g++ or clang++, for example "
                        "with: apt-get install g++) or set CXX")
    with staging_folder(out, fingerprint(plan.shards, identity)) as (staging, journal):
        library = staging / plan.library
        library.parent.mkdir()
        with progress.stages("compile", ("lower", "generate code", "link")) as stage:
            executable = compile_graph(plan.graph, plan.target.tvm_target, stage)
            stage("link")
            _link(executable, library)
        with progress.bytes("weights", plan.weight_bytes) as advance:
            kept = write_shards(staging, plan.shards, source, journal, jobs, advance)
        copy_tokenizer(folder, staging)
        if token_stream is not None:
            (staging / TOKEN_STREAM).write_text(json.dumps(token_stream.tolist()), encoding="utf-8")
        text = json.dumps(plan.chat, indent=1, ensure_ascii=False, allow_nan=False)
        (staging / CHAT_CONFIG).write_text(text, encoding="utf-8")
        kernels = describe_kernels(plan.graph, plan.build.kernels.ORIGIN)
        (staging / KERNEL_CALLS).write_text(json.dumps(kernels), encoding="utf-8")
    return {"artifact": str(given), "kept_shards": kept, **plan.summary()}


def source_identity(folder: Path) -> str:
    """Names a checkpoint's content without reading it: path, size and time of change of every file."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([str(folder.resolve()), facts]).encode()).hexdigest()


def _link(executable: Any, library: Path) -> None:
    try:
        executable.export_library(str(library))
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{library.name}: linking failed with {cc.get_cc()} ({lines[-1] if lines else error}); "
                        "check the compiler and the free space") from None
