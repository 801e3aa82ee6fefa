"""Only hand-written kernels run: none comes from legalisation, dlight or any other default."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from checkpoints import GQA, MLA
from machine import few_token_tiles
from tvm import relax

from blockffn_mlc.builder import make_plan
from blockffn_mlc.checkpoint.draft import Draft
from blockffn_mlc.compile import ACCEPT, PEAK, compile_graph
from blockffn_mlc.draft_config import DraftConfig
from schedules import cpu
from schedules.builder import FACTORY, ORIGIN
from targets.cpu import cpu_target

ROOT = Path(__file__).parents[2]
ARITHMETIC = "shape_func|compute_symbolic_expr"
CONFIGS = {
    "mla": MLA,
    "gqa": GQA,
    "bias, sum": replace(MLA, attention_bias=True, norm_after_router="sum"),
    "none": replace(GQA, norm_after_router="none"),
}


DRAFTS = {"draft": Draft(DraftConfig(64, 2, 96, 4, 2, 16), True, tuple(range(9, 40)))}
PLANS = [(name, quantization) for name in CONFIGS for quantization in ("q0f32", "q0f16")] + [
    ("mla", "q4f16_1"), ("gqa", "q4f16_1"), ("draft", "q4f16_1")]


@pytest.fixture(scope="module", params=PLANS, ids="-".join)
def plan(request):
    """With the default activations: codes for 4-bit weights where this machine can multiply them."""
    name, quantization = request.param
    return make_plan(CONFIGS.get(name, MLA), few_token_tiles(cpu_target()), quantization, 128, 64,
                     draft=DRAFTS.get(name))


def test_every_kernel_names_its_source(plan):
    kernels = plan.graph.kernels()
    assert {"attention", "sparse_up", "sparse_down", "union", "router", "embedding"} <= set(kernels)
    assert ("encode" in kernels) == (plan.build.activations != "f32")
    for name, func in kernels.items():
        assert ORIGIN in func.attrs, f"{name} was not written by hand"
        assert json.loads(str(func.attrs[FACTORY]))["name"] in cpu.__all__
        module = str(func.attrs[ORIGIN])
        assert re.fullmatch(r"schedules\.cpu\.\w+", module), (name, module)
        assert Path(importlib.import_module(module).__file__).is_relative_to(ROOT / "schedules" / "cpu")
        assert func.attrs["tirx.is_scheduled"], f"{name} would be scheduled by default"


def test_the_library_runs_nothing_else(plan):
    """The executable calls our kernels, but for those that the runtime calls by itself, and the virtual machine's own
    bookkeeping; code is generated for our kernels and for the functions that compute buffer sizes and sums of scalar
    arguments."""
    executable = compile_graph(plan.graph, plan.target.tvm_target)
    called = set(re.findall(r"call\s+([\w.]+)", executable.as_text()))
    kernels = set(plan.graph.kernels())
    others = {name for name in called - kernels if not re.match(rf"vm\.builtin\.|{ARITHMETIC}", name)}
    assert kernels - called == {ACCEPT, PEAK} and not others
    generated = set(re.findall(r"define[^@\n]*@__tvm_ffi_(\w+)\(", llvm_text(executable)))
    assert kernels <= generated
    assert all(re.match(ARITHMETIC, name) for name in generated - kernels)


def llvm_text(executable):
    return "\n".join(module.inspect_source("ll") for module in executable.mod.imports if module.kind == "llvm")


def test_an_operator_without_a_kernel_stops_the_build():
    plan = make_plan(MLA, cpu_target(), "q0f32", 128, 64)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([4], "float32"))
    with builder.function("stray", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, x)))
    plan.graph.module[tvm.ir.GlobalVar("stray")] = builder.get()["stray"]
    with pytest.raises(Exception, match=r"R\.add"):
        compile_graph(plan.graph, plan.target.tvm_target)


def test_layers_share_their_buffers():
    """Another layer adds no tensor but its router scores, and nothing is copied or dropped one by one."""
    counts = []
    for layers in (6, 8):  # the plan repeats itself after a few layers
        plan = make_plan(replace(MLA, num_hidden_layers=layers), cpu_target(), "q0f32", 128, 64)
        text = compile_graph(plan.graph, plan.target.tvm_target).as_text()
        forward = next(part for part in re.split(r"\n(?=@)", text) if part.startswith("@forward:"))
        counts.append({name: forward.count(f"vm.builtin.{name} ") for name in ("alloc_tensor", "copy", "null_value")})
    few, many = counts
    assert many["alloc_tensor"] == few["alloc_tensor"] + 2 > 2
    assert not any(count[name] for count in counts for name in ("copy", "null_value"))
