"""From a configuration and a target to a Relax executable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm.relax.frontend.nn as nn
from tvm import relax

from schedules.builder import ORIGIN

from .attention import cache_shape
from .eagle import attention_build, describe_draft
from .layers import Build
from .mlc.kv_cache import mend_creation
from .mlc.metadata import mlc_metadata
from .mlc.model import BOUNDS, ServedModel
from .model import Model
from .virtual_machine import share_buffers, share_shapes

METADATA = "_metadata"


@dataclass(frozen=True)
class Graph:
    """The model before lowering: its module, and its weights in argument order. ``passes``: the functions that our own
    runtime calls."""

    module: tvm.IRModule
    parameters: list[tuple[str, nn.Parameter]]
    cache_bytes: int
    passes: tuple[str, ...] = ()

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
    module = _with_upper_bounds(module, build)
    cache_bytes = _cache_bytes(build) + (_cache_bytes(attention_build(build)) if build.draft else 0)
    return Graph(_with_metadata(module, build, parameters), parameters, cache_bytes, tuple(Model.export_spec(model)))


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
    with tvm.transform.PassContext(opt_level=3):
        planned = tvm.transform.Sequential(_PLANNING)(graph.module)

    def storage(function: relax.Function) -> int:
        sizes: list[int] = []

        def visit(node: Any) -> None:
            if isinstance(node, relax.Call) and node.op == tvm.ir.Op.get("relax.memory.alloc_storage"):
                sizes.append(math.prod(int(size) for size in node.args[0].values))

        relax.analysis.post_order_visit(function.body, visit)
        return sum(sizes)

    return max(storage(planned[name]) for name in {"forward", "draft"} & set(graph.functions()))


def metadata(build: Build, parameters: list[tuple[str, nn.Parameter]]) -> dict[str, Any]:
    """What ``_metadata()`` returns (MLC's model metadata; ``params`` fixes the argument order)."""
    return {
        "model_type": "minicpm", "quantization": build.quantization.name,
        "context_window_size": build.context_window, "prefill_chunk_size": build.prefill_chunk, "max_batch_size": 1,
        "sliding_window_size": -1, "attention_sink_size": -1, "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1, "active_vocab_size": build.config.vocab_size, "model_task": "chat",
        "kv_state_kind": "none", "memory_usage": {}, **(mlc_metadata(build) if build.mlc else {}),
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


def _with_metadata(module: tvm.IRModule, build: Build, parameters: list[tuple[str, nn.Parameter]]) -> tvm.IRModule:
    text = json.dumps(metadata(build, parameters))
    builder = relax.BlockBuilder(module)
    with builder.function(METADATA, params=[]):
        builder.emit_func_output(tvm.ir.StringImm(text))
    return builder.get()


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
