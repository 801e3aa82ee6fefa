"""MLC's paged key-value cache: the function that creates it, and attention over it (MLC contract, section 1.5)."""

from __future__ import annotations

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache
from tvm.s_tir import dlight

from schedules.builder import ORIGIN

from ..layers import Build

PAGE = 16  # tokens; the engine's
CREATE = "create_tir_paged_kv_cache"
_CREATE_BUILTIN = "vm.builtin.paged_attention_kv_cache_create"
# Places of the constructor's arguments.
_CONFIG, _DTYPE = 0, 12
_RAGGED, _PAGED, _DECODE, _SLIDING, _TREE_PAGED, _TREE_RAGGED, _LATENT, _MERGE = 15, 16, 17, 18, 20, 21, 22, 23
_CONFIG_SIZE = 5  # what every runtime before August 2026 insists on; later ones take it too


def cache_heads(build: Build) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and their width in the cache. In one of the MHA kind values are as wide; in one
    of the MLA kind they are columns of the keys."""
    c = build.config
    if not c.is_mla:
        return c.num_attention_heads, c.num_key_value_heads, c.head_dim
    if build.mlc_cache == "mha":
        return c.num_attention_heads, c.num_attention_heads, max(c.qk_head_dim, c.head_dim)
    return c.num_attention_heads, 1, c.kv_lora_rank + c.qk_rope_head_dim


def cache_bytes(build: Build) -> int:
    """Bytes of a cache of one sequence over the whole context window."""
    _, kv_heads, dim = cache_heads(build)
    pages = -(-build.context_window // PAGE)
    return (build.config.num_hidden_layers * pages * PAGE * (1 if build.latent_cache else 2) * kv_heads * dim
            * np.dtype(build.quantization.cache_dtype).itemsize)


def create_cache(build: Build, sizes: list[tirx.Var]) -> PagedKVCache:
    """The cache for ``sizes``: sequences, tokens, tokens of a prefill, tokens of a page, sliding window (0 or 1).
    Positions are rotated in the model, so the cache is told of none."""
    layers, (heads, kv_heads, dim) = build.config.num_hidden_layers, cache_heads(build)
    value_dim = build.config.kv_lora_rank if build.latent_cache else dim
    return TIRPagedKVCache(
        "mla" if build.latent_cache else "mha", *sizes, layer_partition=relax.ShapeExpr([0, layers]),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, qk_head_dim=dim,
        v_head_dim=value_dim, mla_original_qk_head_dim=dim, mla_original_v_head_dim=value_dim, rope_mode=RopeMode.NONE,
        rope_scale=1, rope_theta=10000, rope_scaling={}, rope_ext_factors=relax.prim_value(0), rotary_dim=dim,
        enable_disaggregation=False, dtype=build.quantization.cache_dtype, target=build.mlc)


def mend_creation(module: tvm.IRModule, build: Build) -> tvm.IRModule:
    """Call the runtime's constructor as MLC's engine needs it: with five sizes, and, on processors, with both kernels
    for trees in their places, which TVM 0.27 has swapped. On GPUs attention is our own kernels, there is none for
    sliding windows, and TVM's other kernels get its default schedule."""
    mender = _Mender(module)
    mender.build = build
    for var, function in module.functions.items():
        if isinstance(function, relax.Function) and var.name_hint == CREATE:
            mender.builder_.update_func(var, mender.visit_expr(function))
    module = relax.transform.DeadCodeElimination()(mender.builder_.get())
    if not build.on_gpu:
        return module
    used: set[tirx.Var] = set()
    for function in module.functions.values():
        if isinstance(function, relax.Function):
            tvm_ffi.structural_walk(function.body, (tvm.ir.GlobalVar, used.add))
    theirs = {var: func for var, func in module.functions.items()
              if isinstance(func, tirx.PrimFunc) and ORIGIN not in func.attrs}
    rest = tvm.IRModule({var: func for var, func in module.functions.items() if var not in theirs}, attrs=module.attrs)
    with build.mlc:
        rest.update(dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(
            tvm.IRModule({var: func for var, func in theirs.items() if var in used})))
    return rest


@mutator
class _Mender(PyExprMutator):
    build: Build

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        builtin, *args = call.args
        if not (isinstance(builtin, relax.ExternFunc) and builtin.global_symbol == _CREATE_BUILTIN):
            return call
        args[_CONFIG] = relax.ShapeExpr(list(args[_CONFIG].values)[:_CONFIG_SIZE])
        args[_DTYPE] = relax.const(np.zeros((), str(args[_DTYPE].ty.dtype)))
        if self.build.on_gpu:
            for place, kernel in _slots(self.build).items():
                args[place] = relax.Tuple([] if kernel is None else [
                    tvm.ir.StringImm("tirx"), self.builder_.add_func(kernel, f"cache_slot_{place}")])
            heads, _, dim = cache_heads(self.build)
            merge = self.builder_.add_func(self.build.kernels.merge_state(
                heads, self.build.config.kv_lora_rank if self.build.latent_cache else dim,
                self.build.quantization.cache_dtype), "merge_state")
            args[_MERGE] = relax.Tuple([merge] * len(args[_MERGE].fields))
        elif "paged" not in args[_TREE_PAGED].fields[1].name_hint:
            args[_TREE_PAGED], args[_TREE_RAGGED] = args[_TREE_RAGGED], args[_TREE_PAGED]
        return relax.Call(call.op, [builtin, *args], call.attrs, call.ty_args)


def _slots(build: Build) -> dict[int, tirx.PrimFunc | None]:
    """Our kernels for attention, by the place of the constructor's argument; None: there is none."""
    kernels, sizes = build.kernels, (build.tiles, *cache_heads(build), build.quantization.cache_dtype)
    if build.latent_cache:
        c = build.config
        return {_RAGGED: kernels.ragged_prefill(*sizes, latent=c.kv_lora_rank), _LATENT: kernels.latent_prefill(
            build.tiles, c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim, build.quantization.cache_dtype)}
    return {_RAGGED: kernels.ragged_prefill(*sizes), _PAGED: kernels.paged_prefill(*sizes),
            _DECODE: kernels.paged_decode(*sizes), _SLIDING: None, _SLIDING + 1: None,
            _TREE_PAGED: kernels.paged_prefill(*sizes, tree=True),
            _TREE_RAGGED: kernels.ragged_prefill(*sizes, tree=True)}
