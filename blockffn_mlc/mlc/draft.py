"""The EAGLE draft model as MLC's engine takes it: a model of its own, over its own paged cache, beside its target (MLC
contract, section 1.2, column of the EAGLE draft)."""

from __future__ import annotations

import numpy as np
import tvm.relax.frontend.nn as nn
from tvm.relax.frontend.nn import op, spec
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from schedules.rope_table import rope_table

from ..eagle import Eagle, attention_build
from ..layers import Build, Embedding, activation_spec, call, parameter
from .heads import PagedHeads
from .model import ServedModel, mlc_spec

# Of those that a target has; around them stand ``fuse_embed_hidden_states`` and ``batch_get_logits``.
_FUNCTIONS = ("embed", "alloc_embedding_tensor", "create_tir_paged_kv_cache", "prefill_to_last_hidden_states",
              "batch_prefill_to_last_hidden_states", "decode_to_last_hidden_states",
              "batch_decode_to_last_hidden_states", "get_logits", "gather_probs", "scatter_probs",
              "gather_hidden_states", "scatter_hidden_states")


class ServedDraft(nn.Module):
    """The functions of MLC's engine over the draft's weights and a copy of the target's table of tokens."""

    def __init__(self, build: Build) -> None:
        c, kernels, tiles, token_ids = build.config, build.kernels, build.tiles, build.draft.token_ids
        self.build, self.cache_build = build, attention_build(build)
        self.embed_tokens = Embedding(build)
        self.eagle = Eagle(build)
        self.paged = [PagedHeads(self.cache_build, layer.self_attn) for layer in self.eagle.layers]
        dim = build.draft.config.head_dim
        self.eagle.rope_table = parameter(
            (build.context_window, dim), "float32",
            lambda _: rope_table(build.context_window, dim, c.rope_theta, c.rope_scaling_factor))
        self.head_rows = kernels.encode(tiles, c.hidden_size, build.activations, scale=c.logit_scale)
        self.places = None
        if token_ids is not None:  # the engine knows one vocabulary, the target's
            places = np.full(c.vocab_size, -1, np.int32)
            places[list(token_ids)] = np.arange(len(token_ids), dtype=np.int32)
            self.eagle.token_ids = None
            self.places = parameter(places.shape, "int32", lambda _: places)
            self.whole = kernels.whole_vocabulary(tiles, c.vocab_size, len(token_ids))
        self.gather, self.scatter = (
            {width: make(tiles, width, "float32") for width in (c.hidden_size, c.vocab_size)}
            for make in (kernels.gather_rows, kernels.scatter_rows))

    embed, alloc_embedding_tensor = ServedModel.embed, ServedModel.alloc_embedding_tensor
    gather_probs, scatter_probs = ServedModel.gather_probs, ServedModel.scatter_probs
    gather_hidden_states, scatter_hidden_states = gather_probs, scatter_probs
    create_tir_paged_kv_cache = ServedModel.create_tir_paged_kv_cache

    def fuse_embed_hidden_states(self, embedding: nn.Tensor, hidden: nn.Tensor):
        return self.eagle.fuse(embedding, hidden)

    def to_last_hidden_states(self, x: nn.Tensor, paged_kv_cache: PagedKVCache):
        """x f32 [1, n, H] or [n, 1, H], fused -> states of the same shape, which stand for the target's."""
        n = x.shape[0] * x.shape[1]
        states, positions = op.reshape(x, (n, x.shape[2])), paged_kv_cache.get_query_positions(n)
        for index, (layer, paged) in enumerate(zip(self.eagle.layers, self.paged)):
            states = layer.feed_forward(paged(layer.input_layernorm(states), states, positions, self.eagle.rope_table,
                                              paged_kv_cache, index))
        return op.reshape(states, x.shape), paged_kv_cache

    prefill_to_last_hidden_states = batch_prefill_to_last_hidden_states = to_last_hidden_states
    decode_to_last_hidden_states = batch_decode_to_last_hidden_states = to_last_hidden_states

    def get_logits(self, hidden: nn.Tensor):
        """hidden f32 [n, H] -> f32 [n, V]: the lowest float32 for tokens that the head does not know."""
        logits = self.eagle.logits(call(self.head_rows, "head_rows", [hidden],
                                        activation_spec(self.build, hidden.shape)))
        if self.places is None:
            return logits
        return call(self.whole, "whole_vocabulary", [logits, self.places],
                    ((hidden.shape[0], self.build.config.vocab_size), "float32"))

    batch_get_logits = get_logits  # the engine asks whether there is one, and calls the other

    def export_spec(self) -> dict:
        """Argument types of the exported functions, for ``export_tvm``."""
        hidden = self.build.config.hidden_size
        all_of_them = mlc_spec(hidden, self.build.config.vocab_size)
        rows = spec.Tensor(["n", hidden], "float32")
        packed = {"param_mode": "packed", "effect_mode": "none"}
        return {name: all_of_them[name] for name in _FUNCTIONS} | {
            "fuse_embed_hidden_states": {"embedding": rows, "hidden": rows, "$": packed},
            "batch_get_logits": {"hidden": rows, "$": dict(packed)}}
