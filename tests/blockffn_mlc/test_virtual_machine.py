"""What the virtual machine is given to do around the kernels."""

import pytest
import tvm
from checkpoints import GQA, MLA
from tvm import relax

from blockffn_mlc.builder import make_plan
from blockffn_mlc.compile import _LOWERING
from targets.cpu import cpu_target

REPEATABLE = ("vm.builtin.make_shape", "vm.builtin.make_prim_value", "relax.vm.alloc_tensor")


@pytest.fixture(scope="module", params=[MLA, GQA], ids=["mla", "gqa"])
def bindings(request):
    """The bindings of ``forward``, lowered."""
    plan = make_plan(request.param, cpu_target(), "q0f32", 64, 16)
    with tvm.transform.PassContext(opt_level=3):
        lowered = tvm.transform.Sequential(_LOWERING)(plan.graph.module)
    assert {var.name_hint for var in lowered.functions} >= {"_metadata", "commit", "forward", "forward_dense"}
    return [binding for block in lowered["forward"].body.blocks for binding in block.bindings]


def operator(value):
    return getattr(value.op, "global_symbol", getattr(value.op, "name", "")) if isinstance(value, relax.Call) else ""


@pytest.mark.parametrize("name", REPEATABLE)
def test_shapes_scalars_and_views_are_made_once(bindings, name):
    calls = [str(binding.value) for binding in bindings if operator(binding.value) == name]
    assert calls and len(calls) == len(set(calls))


def test_no_tuple_is_made_of_what_kernels_return(bindings):
    tuples = [binding for binding in bindings if isinstance(binding.value, relax.Tuple)]
    assert len(tuples) == 1  # the result
