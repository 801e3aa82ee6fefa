"""Operators as TVM's own schedules for GPUs (dlight) spread them, at random odd shapes, on a Vulkan device against this
processor: other loops, vectors and reductions than in our kernels."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.s_tir import dlight
from vulkan_harness import TARGET, device

from targets.tools import host_library
from targets.vulkan import export_library

RULES = (dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(),
         dlight.gpu.Transpose(), dlight.gpu.Fallback())
PROCESSOR = tvm.target.Target("llvm")
BOUNDS = {"float32": 1e-5, "float16": 2e-2}  # of errors, as shares of the largest result


def size(rng, most=70):
    return int(rng.integers(1, most))


# Name -> (shapes of the float inputs, the operator); None in a shape is the symbolic extent n, which is int64.
def operators(rng):
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
        "transpose": ([(None, a, b)], lambda x: op.permute_dims(x, [2, 0, 1])),
        "concat": ([(None, a), (None, b)], lambda x, y: op.concat([x, y], axis=1)),
        "slice": ([(None, 16 + a)], lambda x: op.strided_slice(x, [1], [3], [15 + a], [2])),
        "gelu": ([(None, a)], lambda x: op.nn.gelu(x) * op.sigmoid(x)),
        "where": ([(None, a), (None, a)], lambda x, y: op.where(op.less(x, y), op.exp(x), op.tanh(y))),
        "cast": ([(None, a)], lambda x: op.astype(op.astype(op.round(x), "int8"), "float32")),
        "pad": ([(b, None)], lambda x: op.nn.pad(x, (1, 2, 0, 0), "constant")),
        "vectors": ([(None, 64)], lambda x: op.multiply(op.nn.relu(x), x)),
    }


def module(dtype, seed):
    """A Relax function per operator."""
    n = tvm.tirx.Var("n", "int64")
    builder = relax.BlockBuilder()
    for name, (shapes, make) in operators(np.random.default_rng(seed)).items():
        inputs = [relax.Var(f"x{i}", relax.TensorType([n if extent is None else extent for extent in shape], dtype))
                  for i, shape in enumerate(shapes)]
        with builder.function(name, inputs):
            with builder.dataflow():
                result = builder.emit_output(builder.normalize(make(*inputs)))
            builder.emit_func_output(result)
    return builder.get()


def compiled(dtype, seed, target):
    """Fused, scheduled by dlight unless for the processor."""
    with target:
        lowered = tvm.transform.Sequential([
            relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps(),
            relax.transform.FuseTIR()])(module(dtype, seed))
        if target is not PROCESSOR:
            lowered = dlight.ApplyDefaultSchedule(*RULES)(lowered)
    return tvm.compile(lowered, target)


@pytest.mark.parametrize(("dtype", "seed"), [("float32", 0), ("float16", 1)])
def test_operators(dtype, seed, tmp_path):
    device()
    export_library(compiled(dtype, seed, TARGET), str(tmp_path / "kernels.so"), host_library().link)
    found = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "kernels.so")), tvm.device("vulkan", 0))
    expected = relax.VirtualMachine(compiled("float32", seed, PROCESSOR), tvm.cpu())
    rng = np.random.default_rng(seed + 100)
    wrong = {}
    for name, (shapes, _) in operators(np.random.default_rng(seed)).items():
        for n in (1, int(rng.integers(2, 40))):
            arrays = [rng.standard_normal([n if extent is None else extent for extent in shape]).astype(dtype)
                      for shape in shapes]
            wanted = expected[name](*(tvm.runtime.tensor(array.astype("float32")) for array in arrays)).numpy()
            got = device().host(found[name](*map(device().tensor, arrays)))
            error = np.abs(got.astype("float64") - wanted).max()
            if not error <= BOUNDS[dtype] * (1 + np.abs(wanted).max()):
                wrong[name, n] = error
    assert not wrong
