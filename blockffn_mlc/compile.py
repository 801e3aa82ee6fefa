"""From a configuration and a target to a Relax executable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm.relax.frontend.nn as nn
from tvm import relax

from schedules.builder import ORIGIN

from .attention import cache_shape
from .chat_config import DRAFT_TYPE
from .eagle import attention_build, describe_draft
from .layers import Build
from .mlc.draft import ServedDraft
from .mlc.kv_cache import cache_bytes, mend_creation
from .mlc.metadata import mlc_metadata
from .mlc.model import BOUNDS, ServedModel
from .model import Model
from .virtual_machine import share_buffers, share_shapes

METADATA = "_metadata"
ACCEPT, PEAK = "accept", "peak"  # kernels that our runtime calls by itself
_PEAK_WIDTH = 768  # numbers: whole tiles of every vector unit


@dataclass(frozen=True)
class Graph:
    """The model before lowering: its module, and its weights in argument order. ``passes``: the functions that our own
    runtime calls. ``memory_usage``: bytes of intermediate results that one call of each function holds."""

    module: tvm.IRModule
    parameters: list[tuple[str, nn.Parameter]]
    cache_bytes: int
    passes: tuple[str, ...] = ()
    memory_usage: dict[str, int] = field(default_factory=dict)

    def kernels(self) -> dict[str, tvm.tirx.PrimFunc]:
        """Our kernels by name."""
        return {name: func for name, func in self._named(tvm.tirx.PrimFunc).items() if ORIGIN in func.attrs}

    def uses_half(self) -> bool:
        """Whether a kernel reads or writes half-precision numbers."""
        return any(str(param.ty.dtype) == "float16" for func in self.kernels().values() for param in func.params
                   if isinstance(param.ty, tvm.tirx.BufferType))

    def functions(self) -> list[str]:
        """Names of the exported functions."""
        return sorted(self.relax_functions())

    def relax_functions(self) -> dict[str, relax.Function]:
        """The exported functions by name."""
        return self._named(relax.Function)

    def _named(self, kind: type) -> dict[str, Any]:
        return {var.name_hint: func for var, func in self.module.functions.items() if isinstance(func, kind)}


def build_graph(build: Build) -> Graph:
    """Describe the model with ``build``'s kernels. Nothing is compiled yet."""
    model = ServedModel(build) if build.mlc else Model(build)
    module, parameters = model.export_tvm(spec=model.export_spec())
    if build.mlc:
        module = mend_creation(module, build)
    if not build.on_gpu:  # logits in another memory are chosen from by the model's ``argmax``
        module[ACCEPT] = build.kernels.accept(build.tiles, build.config.vocab_size).with_attr("global_symbol", ACCEPT)
    module[PEAK] = build.kernels.peak(build.tiles, _PEAK_WIDTH, build.activations).with_attr("global_symbol", PEAK)
    own_caches = _cache_bytes(build) + (_cache_bytes(attention_build(build)) if build.draft else 0)
    return _graph(module, build, parameters, own_caches, tuple(Model.export_spec(model)), {})


def build_draft_graph(build: Build) -> Graph:
    """Describe the draft model as a model of its own, for MLC's engine."""
    model, own = ServedDraft(build), attention_build(build)
    module, parameters = model.export_tvm(spec=model.export_spec())
    return _graph(mend_creation(module, own), build, parameters, cache_bytes(own), (),
                  {"model_type": DRAFT_TYPE, **mlc_metadata(own)})


def _graph(module: tvm.IRModule, build: Build, parameters: list[tuple[str, nn.Parameter]], cache: int,
           passes: tuple[str, ...], fields: dict[str, Any]) -> Graph:
    module = _with_upper_bounds(module, build)
    usage = _memory_usage(module)
    return Graph(_with_metadata(module, metadata(build, parameters, usage) | fields), parameters, cache, passes, usage)


def _cache_bytes(build: Build) -> int:
    return (build.config.num_hidden_layers * math.prod(cache_shape(build))
            * np.dtype(build.quantization.cache_dtype).itemsize)


def compile_graph(graph: Graph, target: tvm.target.Target, stage: Callable[[str], None] = lambda name: None, *,
                  prefix: str | None = None, instruments: Sequence[Any] = ()) -> relax.VMExecutable:
    """Lower and generate code; ``stage(name)`` is told when either begins. Only our kernels may be left: no
    operator is legalised, so one without a hand-written kernel stops the build. ``prefix``: make a system library
    whose symbols begin with it. ``instruments``: watch TVM's passes."""
    module = graph.module if prefix is None else graph.module.with_attr("system_lib_prefix", prefix)
    with tvm.transform.PassContext(opt_level=3, instruments=list(instruments)):
        stage("lower")
        lowered = tvm.transform.Sequential(_LOWERING)(module)
        stage("generate code")
        return relax.build(lowered, target, relax_pipeline=None, system_lib=prefix is not None)


def planned_bytes(graph: Graph) -> int:
    """Bytes of intermediate results that one call of ``forward`` or ``draft`` holds, for the longest chunk."""
    return max(graph.memory_usage.get(name, 0) for name in ("forward", "draft"))


def _memory_usage(module: tvm.IRModule) -> dict[str, int]:
    """By function the bytes that a call allocates for intermediate results, for the largest arguments. What a function
    returns is allocated anew and not among them, unless its size is fixed (as MLC counts)."""
    with tvm.transform.PassContext(opt_level=3):
        planned = tvm.transform.Sequential(_PLANNING)(module)

    def allocated(function: relax.Function) -> int:
        total = 0
        for value in (binding.value for block in function.body.blocks for binding in block.bindings):
            if isinstance(value, relax.Call) and value.op in _ALLOCATIONS and all(
                    isinstance(size, tvm.tirx.IntImm) for size in value.args[0].values):
                itemsize = 1 if value.op == _STORAGE else np.dtype(value.args[1].value).itemsize
                total += math.prod(int(size) for size in value.args[0].values) * itemsize
        return total

    return {var.name_hint: allocated(function) for var, function in planned.functions.items()
            if isinstance(function, relax.Function)}


def metadata(build: Build, parameters: list[tuple[str, nn.Parameter]], memory_usage: dict[str, int]) -> dict[str, Any]:
    """What ``_metadata()`` returns (MLC's model metadata; ``params`` fixes the argument order)."""
    return {
        "model_type": "minicpm", "quantization": build.quantization.name,
        "context_window_size": build.context_window, "prefill_chunk_size": build.prefill_chunk, "max_batch_size": 1,
        "sliding_window_size": -1, "attention_sink_size": -1, "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1, "active_vocab_size": build.config.vocab_size, "model_task": "chat",
        "kv_state_kind": "none", "memory_usage": memory_usage, **(mlc_metadata(build) if build.mlc else {}),
        **({"draft": describe_draft(build)} if build.draft else {}),
        "params": [{"name": name, "dtype": str(parameter.dtype), "shape": [int(size) for size in parameter.shape],
                    "preprocs": [], "pipeline_stages": [0]} for name, parameter in parameters],
    }


def _with_upper_bounds(module: tvm.IRModule, build: Build) -> tvm.IRModule:
    """Let the memory planner size its buffers once, for the longest chunk."""
    bounds = dict.fromkeys(("n", "m", "k"), build.prefill_chunk) | (BOUNDS if build.mlc else {})
    for var, func in list(module.functions.items()):
        if isinstance(func, relax.Function):
            module[var] = func.with_attr("tir_var_upper_bound", bounds)
    return module


def _with_metadata(module: tvm.IRModule, fields: dict[str, Any]) -> tvm.IRModule:
    text = json.dumps(fields)
    builder = relax.BlockBuilder(module)
    with builder.function(METADATA, params=[]):
        builder.emit_func_output(tvm.ir.StringImm(text))
    return builder.get()


_STORAGE = tvm.ir.Op.get("relax.memory.alloc_storage")
_ALLOCATIONS = (_STORAGE, tvm.ir.Op.get("relax.builtin.alloc_tensor"))
_PLANNING = [
    relax.transform.ToNonDataflow(), relax.transform.RemovePurityChecking(), relax.transform.CallTIRRewrite(),
    relax.transform.StaticPlanBlockMemory(),
]

_LOWERING = [
    *_PLANNING, share_buffers,
    relax.transform.LowerAllocTensor(), relax.transform.CanonicalizeBindings(),
    relax.transform.DeadCodeElimination(), relax.transform.LowerRuntimeBuiltin(),
    relax.transform.ComputePrimValue(), relax.transform.VMShapeLower(), share_shapes,
    relax.transform.CanonicalizeBindings(), relax.transform.AttachGlobalSymbol(),
]
