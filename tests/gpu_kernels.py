"""The GPU kernels of whole models: of both kinds of attention, with a draft model and MLC's functions, in all weight
formats. Of kernels that differ in nothing but sizes there is one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tvm
from checkpoints import GQA, MLA, write_random_checkpoint, write_random_draft
from tvm.relax.frontend.nn.llm import kv_cache

from blockffn_mlc.builder import make_plan
from blockffn_mlc.compile import Graph
from blockffn_mlc.kernel_calls import describe_kernels
from blockffn_mlc.layers import READ
from blockffn_mlc.sources import open_model, with_draft
from runtime_py.bench.calls import Factory
from schedules.builder import ORIGIN, kernel
from schedules.tiles import GpuTiles
from targets import find_target

FORMATS = ("q0f32", "q0f16", "q4f16_1", "q4f32_1")
# More blocks of 32 inputs than an output has work-items; outputs that do not fill the last tile; odd numbers of heads.
_SIZES = {"hidden_size": 320, "vocab_size": 150, "expert_size": 40, "num_experts": 12}
_FREQUENT = range(3, 110, 2)
_WINDOW, _CHUNK = 128, 80
# Configurations, kinds of MLC's cache, formats; caches are float32 or float16.
ALL = ((MLA, "mqa", FORMATS), (MLA, "mla", FORMATS[:2]), (MLA, "mha", FORMATS[2:3]), (GQA, None, FORMATS[:2]))
_STOCK = ("_attention", "tree_attn", "_merge_state", "_kv_cache", "_copy", "_compact", "llama_rope")
_folder = tempfile.TemporaryDirectory(prefix="blockffn-test-")


@dataclass(frozen=True)
class Built:
    """A kernel under its ``name`` in the library, and the weights of the model that it is from."""

    name: str
    factory: Factory
    func: tvm.tirx.PrimFunc
    weights: Any


class _Weights(dict):
    """A model's weights as stored, by name; made when somebody asks."""

    def __init__(self, graph: Graph, source: Any) -> None:
        super().__init__()
        self._read = {name: parameter.attrs[READ] for name, parameter in graph.parameters}
        self._source = source

    def __missing__(self, name: str) -> Any:
        self[name] = self._read[name](self._source)
        return self[name]


@cache
def kernels(tiles: GpuTiles, models: tuple = ALL) -> dict[str, Built]:
    """The kernels of ``models`` for work-groups of ``tiles``, by what they were made with."""
    found: dict[str, Built] = {}
    target = replace(find_target("metal"), tiles=tiles)
    for config, kind, formats in models:
        source = _model(replace(config, **_SIZES))
        for weight_format in formats:
            with no_stock_kernels():
                plan = make_plan(source.config, target, weight_format, _WINDOW, _CHUNK,
                                 draft=source.draft if kind in ("mqa", None) else None, mlc=True, mlc_cache=kind)
            for graph in filter(None, (plan.graph, plan.draft and plan.draft.graph)):
                weights, factories = _Weights(graph, source.weights), describe_kernels(graph)["factories"]
                for name, func in sorted(graph.kernels().items()):
                    made = factories[name]
                    key = f"{made['name']}({_shape(made['arguments'])})"
                    factory = Factory(made["name"], made["arguments"], tuple(made["weights"]))
                    found.setdefault(key, Built(f"{factory.name}_{len(found)}", factory, func, weights))
    return found


@contextmanager
def no_stock_kernels() -> Iterator[None]:
    """Without the kernels of TVM's own cache, which take long to make and are not ours."""
    with kernel(__name__) as k:
        k.tensor((1,))
    stub = k.func.without_attr(ORIGIN)
    with ExitStack() as stack:
        for name in (name for name in vars(kv_cache) if name.startswith(_STOCK)):
            stack.enter_context(patch.object(kv_cache, name, lambda *_, **__: stub))
        yield


@cache
def _model(config: Any) -> Any:
    """A model of random weights, with a draft that names some of its tokens."""
    folder = Path(tempfile.mkdtemp(dir=_folder.name))
    write_random_checkpoint(folder / "model", config)
    write_random_draft(folder / "draft", config, frequent=_FREQUENT)
    return with_draft(open_model(str(folder / "model")), folder / "draft")


def _shape(arguments: dict[str, Any]) -> str:
    """What of a factory's arguments is more than a size."""
    kept = {name: value if isinstance(value, str | bool | None) else "..." for name, value in arguments.items()
            if not (isinstance(value, int) and not isinstance(value, bool) and value != 1)}
    return json.dumps(kept)
