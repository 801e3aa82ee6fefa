"""From a source of weights to an artifact folder: plan, then compile, convert and put in place."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from schedules.tiles import MAX_TREE_NODES, GpuTiles

from .chat_config import DRAFT, chat_config, copy_tokenizer, draft_chat_config
from .chat_config import FILE as CHAT_CONFIG
from .checkpoint.draft import Draft
from .compile import Graph, build_draft_graph, build_graph, planned_bytes
from .config import BlockFFNConfig
from .eagle import describe_draft
from .errors import UserError
from .kernel_calls import FILE as KERNEL_CALLS
from .kernel_calls import describe_kernels
from .layers import Build
from .libraries import STAGES, system_lib_prefix, write_libraries
from .progress import Progress
from .quantization import activations, quantization
from .shards import Journal, Shard, Source, adopt_shards, fingerprint, plan_shards, write_shards
from .staging import check_destination, staging_folder
from .target import Target

TOKEN_STREAM = "token_stream.json"
# What files in an artifact for phones say of a kind of device.
_DEVICE_WORDS = {
    "opencl": {"api": "OpenCL", "macro": "OPENCL", "device_type": "4",
               "half": "Kernels need half precision (`cl_khr_fp16`).",
               "driver": "an OpenCL 1.2 driver that apps may load (`libOpenCL.so`)"},
    "vulkan": {"api": "Vulkan", "macro": "VULKAN", "device_type": "7",
               "half": "Kernels need half precision (`shaderFloat16`, `storageBuffer16BitAccess`).",
               "driver": "a Vulkan 1.1 driver"},
    "metal": {"api": "Metal", "macro": "METAL", "device_type": "8",
              "half": "Kernels need half precision, which all of these have.",
              "driver": "a processor of Apple's since the A11 and iOS 16 or later"},
}


@dataclass(frozen=True)
class Plan:
    """Everything decided before work starts. ``library``: path in the artifact, without a suffix. ``prefix``: of a
    system library's symbols. ``chat``: the contents of mlc-chat-config.json. ``draft``: of the draft model in a folder
    of its own, for MLC's engine."""

    build: Build
    target: Target
    graph: Graph
    shards: list[Shard]
    library: str
    prefix: str
    chat: dict[str, Any]
    draft: Plan | None = None

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
              activation_format: str | None = None, draft: Draft | None = None, name: str = "model",
              prefix: str | None = None, mlc: bool = False, mlc_cache: str | None = None) -> Plan:
    """Check the options against the model and describe the build; see ``make_build`` too. ``folder``: the checkpoint's,
    for tokenizer and generation defaults (None: there are none). ``name``: the model's, for the default of ``prefix``,
    which a system library's symbols begin with. Raises UserError."""
    build = make_build(config, target, quantization_name, context_window, prefill_chunk, activation_format, draft, mlc,
                       mlc_cache)
    prefix = system_lib_prefix(prefix, name, quantization_name)
    graph = build_graph(build)
    library = f"lib/blockffn-{build.quantization.name}-{target.file_name}"
    chat = chat_config(build, _describe_library(target, library, prefix, graph), folder)
    plan = Plan(build, target, graph, plan_shards(graph.parameters), library, prefix, chat)
    if mlc and draft and not build.latent_cache:
        graph, library = build_draft_graph(build), f"{library}-draft"
        plan = replace(plan, draft=Plan(build, target, graph, plan_shards(graph.parameters), library, f"{prefix}draft_",
                                        draft_chat_config(chat, build)))
        chat["blockffn"]["mlc_draft"] = {"folder": DRAFT, "library": f"{DRAFT}/{library}{target.forms[0].suffix}"}
    if target.limits:
        for part in filter(None, (plan, plan.draft)):
            target.limits.check_shapes(target.name, part.graph.kernels(), max(build.prefill_chunk, MAX_TREE_NODES))
    return plan


def make_build(config: BlockFFNConfig, target: Target, quantization_name: str, context_window: int | None = None,
               prefill_chunk: int | None = None, activation_format: str | None = None, draft: Draft | None = None,
               mlc: bool = False, mlc_cache: str | None = None) -> Build:
    """What the model's layers need to know, from options that are checked against the model. ``activation_format``: one
    of schedules.activations (None: the fastest). ``draft``: the draft model to compile into the same library. ``mlc``:
    export the functions of MLC's engine too; ``mlc_cache``: over which kind of its cache, one of ``MLC_CACHES`` (None:
    the smallest that does what can be done with the model). Raises UserError."""
    context = config.max_position_embeddings if context_window is None else context_window
    chunk = min(target.prefill_chunk, context) if prefill_chunk is None else prefill_chunk
    for option, value, limit, what in (
            ("--context-window", context, config.max_position_embeddings, "the model's max_position_embeddings"),
            ("--prefill-chunk", chunk, context, "the context window")):
        if not 0 < value <= limit:
            raise UserError(f"{option} {value}: expected 1 to {limit}, {what}")
    if mlc_cache and not mlc:
        raise UserError(f"--mlc-cache {mlc_cache}: target {target.name} is built without the functions of MLC's "
                        "engine; add --mlc or leave the option out")
    weights = quantization(quantization_name, target.name, target.kernels.FORMATS)
    return Build(config, weights, activations(activation_format, weights, target), target.kernels, target.tiles,
                 context, chunk, draft, target.limits.buffer_bytes if target.limits else None,
                 target.tvm_target if mlc else None, _cache_kind(mlc_cache, config, target, draft))


def _cache_kind(kind: str | None, config: BlockFFNConfig, target: Target, draft: Draft | None) -> str:
    on_gpu = isinstance(target.tiles, GpuTiles)
    if not config.is_mla:
        if kind not in (None, "mha"):
            raise UserError(f"--mlc-cache {kind}: the model has no latent attention, its cache is of the kind mha; "
                            "leave the option out")
        return "mha"
    if kind == "mla" and not on_gpu:
        raise UserError(f"--mlc-cache mla: on target {target.name} MLC's cache has no such kind; use --mlc-cache mqa")
    return kind or ("mla" if on_gpu and draft is None else "mqa")


def build_artifact(plan: Plan, source: Source, folder: Path | None, identity: str, out: Path, jobs: int,
                   progress: Progress, token_stream: np.ndarray | None = None,
                   twin: Path | None = None) -> dict[str, Any]:
    """Write the artifact ``out``. Returns figures about what was done.

    ``folder``: the checkpoint's, as for ``make_plan``. ``identity`` names the source's content.
    ``token_stream`` int32 [n]: the text of synthetic weights. ``twin``: an artifact whose weights are the same bytes
    (``weights_identity``). Everything is written beside ``out`` and renamed at the end; after an interruption the next
    build of the same thing keeps the shards that are complete. Raises UserError, OSError.
    """
    given, out = out, Path(os.path.abspath(out))
    check_destination(out)
    with staging_folder(out, weights_identity(plan, identity)) as (staging, journal):
        with progress.stages("compile", STAGES) as stage:
            taken = write_libraries(plan.graph, plan.target, staging / plan.library, plan.prefix, stage)
        if twin:
            adopt_shards(staging, plan.shards, twin, journal)
        with progress.bytes("weights", plan.weight_bytes) as advance:
            kept = write_shards(staging, plan.shards, source, journal, jobs, advance)
        copy_tokenizer(folder, staging)
        if plan.draft:
            _write_draft(plan.draft, source, staging / DRAFT, jobs, progress)
        if token_stream is not None:
            (staging / TOKEN_STREAM).write_text(json.dumps(token_stream.tolist()), encoding="utf-8")
        chat = _write_chat_config(plan, taken, staging)
        kernels = describe_kernels(plan.graph)
        (staging / KERNEL_CALLS).write_text(json.dumps(kernels), encoding="utf-8")
        for name, template in plan.target.files.items():
            (staging / name).write_text(Template(template).substitute(_words(plan, chat, out.name)), encoding="utf-8")
    return {"artifact": str(given), "kept_shards": 0 if twin else kept, **plan.summary()}


def _write_draft(plan: Plan, source: Source, folder: Path, jobs: int, progress: Progress) -> None:
    """The draft model for MLC's engine. It is small: after an interruption it is written anew."""
    folder.mkdir()
    with progress.stages("mlc draft", STAGES) as stage:
        taken = write_libraries(plan.graph, plan.target, folder / plan.library, plan.prefix, stage)
    journal = Journal(folder, "")
    write_shards(folder, plan.shards, source, journal, jobs, lambda stored: None)
    journal.remove()
    _write_chat_config(plan, taken, folder)


def _write_chat_config(plan: Plan, taken: dict[str, int], folder: Path) -> dict[str, Any]:
    """The plan's configuration with what the compiled kernels take of a device in the place of what they might."""
    chat = dict(plan.chat)
    if "device" in (ours := chat.get("blockffn", {})):
        chat["blockffn"] = ours | {"device": ours["device"] | taken}
    text = json.dumps(chat, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CHAT_CONFIG).write_text(text, encoding="utf-8")
    return chat


def weights_identity(plan: Plan, identity: str) -> str:
    """Equal for plans whose shards hold the same bytes. ``identity`` names the source's content."""
    return fingerprint(plan.shards, identity)


def source_identity(folder: Path) -> str:
    """Names a checkpoint's content without reading it: path, size and time of change of every file."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([str(folder.resolve()), facts]).encode()).hexdigest()


def _describe_library(target: Target, library: str, prefix: str, graph: Graph) -> dict[str, Any]:
    """The fields of section ``blockffn`` that depend on the target (docs/artifact.md)."""
    fields: dict[str, Any] = {"library": library + target.forms[0].suffix, "target": target.name, "host": target.host}
    for form in target.forms:
        if form.system_lib:
            fields["system_lib"] = {"path": library + form.suffix, "prefix": prefix}
    if target.limits:
        fields["device"] = {"kind": str(target.tvm_target.kind), "fp16": graph.uses_half(), **asdict(target.limits)}
    return fields


def _words(plan: Plan, chat: dict[str, Any], artifact: str) -> dict[str, Any]:
    """What the templates of a target's files name."""
    ours = chat["blockffn"]
    device = ours["device"]
    words = _DEVICE_WORDS[device["kind"]]
    return dict(
        artifact=artifact, target=plan.target.name, quantization=plan.build.quantization.name,
        library=ours["library"], system_lib=ours["system_lib"]["path"], prefix=plan.prefix,
        tvm_version=ours["tvm_version"], tvm_release=ours["tvm_version"].partition(".post")[0],
        weight_megabytes=round(plan.weight_bytes / 1e6), memory_megabytes=round(plan.summary()["total_bytes"] / 1e6),
        work_group=device["work_group"], threadgroup_kilobytes=-(-device["threadgroup_bytes"] // 1024),
        buffer_megabytes=device["buffer_bytes"] >> 20,
        precision=words["half"] if device["fp16"] else "Kernels compute in float32 throughout.", **words)
