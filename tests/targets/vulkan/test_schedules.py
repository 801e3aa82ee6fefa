"""Operators as TVM's own schedules for GPUs (dlight) spread them, at random odd shapes, on a Vulkan device against this
processor: other loops, vectors and reductions than in our kernels."""

from functools import partial

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.s_tir import dlight
from tvm.s_tir.dlight.base import ScheduleRule
from vulkan_harness import TARGET, device

from targets.tools import host_library
from targets.vulkan import export_library

PROCESSOR = tvm.target.Target("llvm")
BOUNDS = {"float32": 1e-5, "float16": 2e-2}  # of errors, as shares of the largest result


def size(rng, most=70):
    return int(rng.integers(1, most))


# Name -> (shapes of the float inputs, the operator); None in a shape is the symbolic extent n, which is int64.
def all_kinds(rng):
    a, b, c = (size(rng) for _ in range(3))
    return {
        "matmul": ([(None, a), (a, b)], lambda x, y: op.matmul(x, y)),
        "matrix_vector": ([(1, 64 * a), (b, 64 * a)], lambda x, y: op.matmul(x, op.permute_dims(y))),
        "batched": ([(3, None, b), (3, b, c)], lambda x, y: op.matmul(x, y)),
        "softmax": ([(None, a)], lambda x: op.nn.softmax(x, -1)),
        "rms_norm": ([(None, a), (a,)], lambda x, w: op.nn.rms_norm(x, w, axes=[-1], epsilon=1e-5)),
        "layer_norm": ([(None, a), (a,), (a,)], lambda x, w, b: op.nn.layer_norm(x, w, b, axes=[-1])),
        "sum": ([(a, None, b)], lambda x: op.sum(x, axis=[1])),
        "total": ([(None, b)], lambda x: op.sum(x)),
        "argmax": ([(None, a)], lambda x: op.argmax(x, axis=-1)),
        "transpose": ([(a, b)], lambda x: op.permute_dims(x, [1, 0])),
        "permute": ([(None, a, b)], lambda x: op.permute_dims(x, [2, 0, 1])),
        "concat": ([(None, a), (None, b)], lambda x, y: op.concat([x, y], axis=1)),
        "slice": ([(None, 16 + a)], lambda x: op.strided_slice(x, [1], [3], [15 + a], [2])),
        "gelu": ([(None, a)], lambda x: op.nn.gelu(x) * op.sigmoid(x)),
        "where": ([(None, a), (None, a)], lambda x, y: op.where(op.less(x, y), op.exp(x), op.tanh(y))),
        "cast": ([(None, a)], lambda x: op.astype(op.astype(op.round(x), "int8"), "float32")),
        "pad": ([(b, None)], lambda x: op.nn.pad(x, (1, 2, 0, 0), "constant")),
        "vectors": ([(None, 64)], lambda x: op.multiply(op.nn.relu(x), x)),
    }


def few_rows(rng):
    """Products with matrices whose rows lie as MLC's do, of n vectors: what LowBatchGEMV takes."""
    a, b = size(rng, 12), size(rng)
    return {
        "linear": ([(None, 1, 64 * a), (b, 64 * a)], lambda x, w: op.matmul(x, op.permute_dims(w))),
        "odd": ([(None, 1, 17 + a), (b, 17 + a)], lambda x, w: op.matmul(x, op.permute_dims(w))),
        "gelu": ([(None, 1, 64 * a), (b, 64 * a)], lambda x, w: op.nn.gelu(op.matmul(x, op.permute_dims(w)))),
        "rows": ([(None, 64 * a), (b, 64 * a)], lambda x, w: op.matmul(x, op.permute_dims(w))),
    }


def norms(rng):
    """RMSNorm takes three dimensions, the last a multiple of 512."""
    a = 512 * size(rng, 4)
    return {"rms_norm": ([(None, 1, a), (a,)], lambda x, w: op.nn.rms_norm(x, w, axes=[-1], epsilon=1e-5))}


GROUPS = {  # operators, rules in the order in which they are tried
    "all": (all_kinds, (dlight.gpu.Matmul, dlight.gpu.GEMV, dlight.gpu.Reduction, dlight.gpu.GeneralReduction,
                        dlight.gpu.Transpose, dlight.gpu.Fallback)),
    "few rows": (few_rows, (partial(dlight.gpu.LowBatchGEMV, 4),)),
    "norms": (norms, (dlight.gpu.RMSNorm,)),
}


class Noted(ScheduleRule):
    """A rule, and whether it scheduled anything."""

    def __init__(self, rule):
        self.rule, self.used = rule, False

    def apply(self, func, target, tunable):
        schedule = self.rule.apply(func, target, tunable)
        self.used |= schedule is not None
        return schedule


def module(dtype, operators):
    """A Relax function per operator."""
    n = tvm.tirx.Var("n", "int64")
    builder = relax.BlockBuilder()
    for name, (shapes, make) in operators.items():
        inputs = [relax.Var(f"x{i}", relax.TensorType([n if extent is None else extent for extent in shape], dtype))
                  for i, shape in enumerate(shapes)]
        with builder.function(name, inputs):
            with builder.dataflow():
                result = builder.emit_output(builder.normalize(make(*inputs)))
            builder.emit_func_output(result)
    return builder.get()


def compiled(dtype, operators, target, rules=()):
    """Fused, scheduled by ``rules``, all of which find something to do."""
    with target:
        lowered = tvm.transform.Sequential([
            relax.transform.FuseTransposeMatmul(), relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps(), relax.transform.FuseTIR()])(
                module(dtype, operators))
        noted = [Noted(rule()) for rule in rules]
        lowered = dlight.ApplyDefaultSchedule(*noted)(lowered)
    assert all(rule.used for rule in noted), [type(rule.rule).__name__ for rule in noted if not rule.used]
    return tvm.compile(lowered, target)


@pytest.mark.parametrize(("group", "dtype", "seed"), [
    ("all", "float32", 0), ("all", "float16", 1), ("all", "float32", 2), ("few rows", "float32", 3),
    ("few rows", "float16", 4), ("norms", "float32", 5), ("norms", "float16", 6)])
def test_operators(group, dtype, seed, tmp_path):
    device()
    make, rules = GROUPS[group]
    operators = make(np.random.default_rng(seed))
    export_library(compiled(dtype, operators, TARGET, rules), str(tmp_path / "kernels.so"), host_library().link)
    found = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "kernels.so")), tvm.device("vulkan", 0))
    expected = relax.VirtualMachine(compiled("float32", operators, PROCESSOR), tvm.cpu())
    rng = np.random.default_rng(seed + 100)
    wrong = {}
    for name, (shapes, _) in operators.items():
        for n in (1, int(rng.integers(2, 40))):
            arrays = [rng.standard_normal([n if extent is None else extent for extent in shape]).astype(dtype)
                      for shape in shapes]
            wanted = expected[name](*(tvm.runtime.tensor(array.astype("float32")) for array in arrays)).numpy()
            got = device().host(found[name](*map(device().tensor, arrays)))
            error = np.abs(got.astype("float64") - wanted).max()
            if not error <= BOUNDS[dtype] * (1 + np.abs(wanted).max()):
                wrong[name, n] = error
    assert not wrong
