"""One tensor per buffer: views of the planned memory are made once per call, not once per use."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_ALLOC_TENSOR = tvm.ir.Op.get("relax.memory.alloc_tensor")


@tvm.transform.module_pass(opt_level=0, name="ShareBuffers")
def share_buffers(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Replace every ``alloc_tensor`` by the first one with equal arguments. Run behind StaticPlanBlockMemory.

    All layers live in the same planned storages: 35 of them need a dozen views instead of 600, and making, freeing
    and describing those costs the virtual machine more than all its other work. Lifetimes stay as planned,
    because the plan is about storages; views may live until the end of the call.
    """
    sharer = _Sharer(module)
    for var, function in module.functions.items():
        if isinstance(function, relax.Function):
            sharer.views = []
            sharer.builder_.update_func(var, sharer.visit_expr(function))
    return sharer.builder_.get()


@mutator
class _Sharer(PyExprMutator):
    views: list[tuple[relax.Expr, relax.Var]]

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if not (isinstance(value, relax.Call) and value.op == _ALLOC_TENSOR):
            super().visit_var_binding_(binding)
            return
        value = self.visit_expr(value)
        first = next((var for other, var in self.views if tvm_ffi.structural_equal(value, other)), None)
        if first is None:
            self.views.append((value, binding.var))
        super().visit_var_binding_(relax.VarBinding(binding.var, value if first is None else first))
