"""The model as mlc_llm's own compiler takes it: what that attaches itself is left to it."""

from __future__ import annotations

from collections.abc import Callable

import tvm.relax.frontend.nn as nn
from tvm import tirx
from tvm.relax.frontend.nn import spec
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode

from schedules.rope_table import rope_table

from ..layers import Build
from .kv_cache import cache_heads
from .model import SIZES, ServedModel, model_spec

CREATE = "create_paged_kv_cache"


class PluginModel(ServedModel):
    """The functions with weights, and the placeholder that mlc_llm replaces by the cache's creation. The table of
    rotations is a constant: convert_weight would look for it among a checkpoint's tensors, and round it."""

    def __init__(self, build: Build, create_generic: Callable[..., PagedKVCache]) -> None:
        """``create_generic``: of mlc_llm's PagedKVCache."""
        super().__init__(build)
        c, self.create_generic = build.config, create_generic
        self.rope_table = nn.Tensor.from_const(
            rope_table(build.context_window, c.rope_dim, c.rope_theta, c.rope_scaling_factor))

    def create_paged_kv_cache(self, max_batch_size: tirx.Var, max_total_seq_len: tirx.Var,
                              prefill_chunk_size: tirx.Var, page_size: tirx.Var,
                              support_sliding_window: tirx.Var) -> PagedKVCache:
        heads, kv_heads, dim = cache_heads(self.build)
        return self.create_generic(
            attn_kind="mha", max_batch_size=max_batch_size, max_total_seq_len=max_total_seq_len,
            prefill_chunk_size=prefill_chunk_size, page_size=page_size, support_sliding_window=support_sliding_window,
            num_hidden_layers=self.build.config.num_hidden_layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, qk_head_dim=dim, v_head_dim=dim, rope_mode=RopeMode.NONE, rope_scale=1,
            rope_theta=10000, dtype=self.build.quantization.cache_dtype)

    def get_default_spec(self) -> spec.ModuleSpec:
        """Argument types, in MLC's form."""
        functions = model_spec(self.build.config.hidden_size) | {CREATE: dict.fromkeys(SIZES, int) | {
            "$": {"param_mode": "none", "effect_mode": "none"}}}
        return spec.ModuleSpec.from_raw(functions, self)
