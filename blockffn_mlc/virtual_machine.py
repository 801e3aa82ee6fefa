"""Less work for the virtual machine: nothing is made twice."""

from __future__ import annotations

from collections.abc import Iterable

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_VIEWS = ("relax.memory.alloc_tensor",)
_SHAPES = ("vm.builtin.make_shape", "vm.builtin.make_prim_value")  # of the shape heap, complete before the first


@tvm.transform.module_pass(opt_level=0, name="ShareBuffers")
def share_buffers(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Replace every ``alloc_tensor`` by the first one with equal arguments. Run behind StaticPlanBlockMemory.

    All layers live in the same planned storages: 35 of them need a dozen views instead of 600, and making, freeing
    and describing those costs the virtual machine more than all its other work. Lifetimes stay as planned,
    because the plan is about storages; views may live until the end of the call.
    """
    return _shared(module, _VIEWS)


@tvm.transform.module_pass(opt_level=0, name="ShareShapes")
def share_shapes(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Make every shape and every scalar argument of kernels once per call. Run behind VMShapeLower."""
    return _shared(module, _SHAPES)


def _shared(module: tvm.IRModule, operators: Iterable[str]) -> tvm.IRModule:
    sharer = _Sharer(module)
    sharer.operators = frozenset(operators)
    for var, function in module.functions.items():
        if isinstance(function, relax.Function):
            sharer.made = []
            sharer.builder_.update_func(var, sharer.visit_expr(function))
    return sharer.builder_.get()


@mutator
class _Sharer(PyExprMutator):
    """Binds a call of ``operators`` to the variable of the first equal one in the function (those in ``made``)."""

    operators: frozenset[str]
    made: list[tuple[relax.Expr, relax.Var]]

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if not (isinstance(value, relax.Call) and _name(value.op) in self.operators):
            super().visit_var_binding_(binding)
            return
        value = self.visit_expr(value)
        first = next((var for other, var in self.made if tvm_ffi.structural_equal(value, other)), None)
        if first is None:
            self.made.append((value, binding.var))
        super().visit_var_binding_(relax.VarBinding(binding.var, value if first is None else first))


def _name(operator: relax.Expr) -> str | None:
    return operator.global_symbol if isinstance(operator, relax.ExternFunc) else getattr(operator, "name", None)
