"""A library of one GPU kernel, for tests of what surrounds kernels."""

from dataclasses import replace

import tvm.relax.frontend.nn as nn
from tvm.relax.frontend.nn import op, spec
from tvm.script.ir_builder import tirx as T

from blockffn_mlc.compile import Graph
from schedules.builder import kernel

WIDTH = 32
TOO_MUCH = {  # a limit of targets.limits.Limits -> a kernel that exceeds the others' kernel in that alone
    "work_group": {"items": 512}, "threadgroup_bytes": {"shared": 20000}, "statements": {"unroll": 600},
    "source_bytes": {"unroll": 600}, "buffer_bytes": {"rows": 1 << 20}, "buffers": {"inputs": 3},
    "groups": {"groups": 9},
}


def small_kernel(items=32, shared=32, unroll=1, rows=1, inputs=1, groups=1):
    """y[t] = x[t] + ... by ``groups`` of ``items`` each, with ``shared`` floats per group and ``unroll`` statements;
    all [n, rows, WIDTH]."""
    with kernel(__name__) as k:
        n = k.rows_var()
        *x, y = (k.tensor((n, rows, WIDTH)) for _ in range(inputs + 1))
        with T.launch_thread("blockIdx.x", n * groups) as group, T.launch_thread("threadIdx.x", items) as item:
            row = T.floordiv(group, groups)
            memory = T.alloc_buffer((shared,), "float32", scope="shared")
            spread = item * max(1, shared // items)  # over all of the memory, or TVM would allocate less
            T.buffer_store(memory, sum(tensor[row, 0, item % WIDTH] for tensor in x), [spread % shared])
            T.evaluate(T.tvm_storage_sync("shared"))
            for i in range(unroll):
                T.buffer_store(y, memory[(spread + i) % shared] + T.float32(i), [row, 0, item % WIDTH])
    return k.func


def serial_kernel():
    """The same for a processor."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x, y = k.tensor((n, 1, WIDTH)), k.tensor((n, 1, WIDTH))
        with T.serial(0, n) as row, T.serial(0, WIDTH) as i:
            T.buffer_store(y, x[row, 0, i] + T.float32(1), [row, 0, i])
    return k.func


def small_graph(device=True, **options):
    """One function ``forward`` that calls ``small_kernel(**options)``, or the processor's, as ``add``."""
    func = small_kernel(**options) if device else serial_kernel()
    rows = int(func.params[0].ty.shape[1])

    class Model(nn.Module):
        def forward(self, x: nn.Tensor) -> nn.Tensor:
            inputs = len(func.params) - 1
            return op.tensor_ir_op(func, "add", [x] * inputs, nn.Tensor.placeholder(x.shape, "float32"))

    model = Model()
    module, parameters = model.export_tvm(spec={"forward": {"x": spec.Tensor(["n", rows, WIDTH], "float32")}})
    return Graph(module, parameters, 0)


def with_limit(target, name, value):
    """The target with another limit."""
    return replace(target, limits=replace(target.limits, **{name: value}))
