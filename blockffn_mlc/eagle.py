"""The EAGLE draft model: one or a few small layers that continue the target's last hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import tvm.relax.frontend.nn as nn

from schedules.rope_table import rope_table

from .attention import Chunk, GroupedQueryAttention, cache_shape
from .checkpoint.draft import PREFIX
from .draft_config import MAX_TOP_K
from .layers import (
    Build,
    Encode,
    Linear,
    RMSNorm,
    activation_spec,
    blocks,
    blocks_option,
    blocks_parameter,
    call,
    parameter,
)


def attention_build(build: Build) -> Build:
    """``build`` with the sizes of the draft's layers in place of the target's."""
    return replace(build, config=build.draft.config)


def describe_draft(build: Build) -> dict[str, Any]:
    """What a runtime must know of the draft (docs/artifact.md)."""
    draft = build.draft
    vocabulary = build.config.vocab_size if draft.token_ids is None else len(draft.token_ids)
    return {"layers": draft.config.num_hidden_layers, "vocab_size": vocabulary, "top_k": min(MAX_TOP_K, vocabulary),
            "cache_shape": list(cache_shape(attention_build(build))), "cache_dtype": build.quantization.cache_dtype}


class EagleLayer(nn.Module):
    """x += attention(norm(x)); x += down(silu(gate(norm(x))) * up(norm(x))). The first layer skips its first norm."""

    def __init__(self, build: Build, index: int) -> None:
        d, eps, self.build = build.draft.config, build.config.rms_norm_eps, build
        hidden, inner, prefix = d.hidden_size, d.intermediate_size, f"{PREFIX}layers.{index}"
        self.input_layernorm = (RMSNorm(build, f"{prefix}.input_layernorm", hidden, eps) if index
                                else Encode(build, hidden))
        self.self_attn = GroupedQueryAttention(attention_build(build), f"{prefix}.self_attn")
        self.post_attention_layernorm = RMSNorm(build, f"{prefix}.post_attention_layernorm", hidden, eps)
        self.gate_up_proj = Linear(build, "gate_up_proj", hidden, 2 * inner,
                                   [f"{prefix}.mlp.{name}_proj" for name in ("gate", "up")])
        self.gated_silu = build.kernels.gated_silu(build.tiles, inner, build.activations)
        self.down_proj = Linear(build, "down_proj", inner, hidden, [f"{prefix}.mlp.down_proj"], residual_scale=1.0)

    def forward(self, x: nn.Tensor, chunk: Chunk, cache: nn.Tensor) -> nn.Tensor:
        return self.feed_forward(self.self_attn(self.input_layernorm(x), x, chunk, cache))

    def feed_forward(self, x: nn.Tensor) -> nn.Tensor:
        """What follows attention: f32 [n, H] -> f32 [n, H]."""
        inner = call(self.gated_silu, "gated_silu", [self.gate_up_proj(self.post_attention_layernorm(x))],
                     activation_spec(self.build, (x.shape[0], self.build.draft.config.intermediate_size)))
        return self.down_proj(inner, x)


class Eagle(nn.Module):
    """x_i = fc1(norm1(embed(token i + 1))) + fc2(norm2(h_i)); the layers' output d_i stands for h_{i + 1} (EAGLE, arXiv
    2401.15077, section 4.1). Its head is the rows of the target's lm_head that the frequency list names (FR-Spec,
    arXiv 2502.14856). Norms use the target's epsilon, positions its frequencies."""

    def __init__(self, build: Build) -> None:
        c, draft, self.build = build.config, build.draft, build
        hidden, kernels, tiles, formats = c.hidden_size, build.kernels, build.tiles, build.quantization
        self.input_norm1 = RMSNorm(build, f"{PREFIX}input_norm1", hidden, c.rms_norm_eps)
        self.input_norm2 = RMSNorm(build, f"{PREFIX}input_norm2", hidden, c.rms_norm_eps)
        self.fc1 = Linear(build, "fc1", hidden, hidden, [f"{PREFIX}fc1"], bias=draft.has_bias)
        self.fc2 = Linear(build, "fc2", hidden, hidden, [f"{PREFIX}fc2"], residual_scale=1.0)
        self.layers = nn.ModuleList([EagleLayer(build, i) for i in range(draft.config.num_hidden_layers)])
        self.vocabulary, self.k = (describe_draft(build)[name] for name in ("vocab_size", "top_k"))
        rows = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
        token_ids = None if draft.token_ids is None else np.array(draft.token_ids, np.int32)
        self.lm_head = blocks_parameter(
            build, (self.vocabulary, hidden), rows,
            lambda source: source.read(rows) if token_ids is None else source.read(rows)[token_ids])
        self.token_ids = None
        if token_ids is not None:
            self.token_ids = parameter(token_ids.shape, "int32", lambda _: token_ids)
        # The target's table serves where both rotate as many dimensions.
        self.rope_table = None
        if draft.config.head_dim != c.rope_dim:
            self.rope_table = parameter(
                (build.context_window, draft.config.head_dim), "float32", lambda _: rope_table(
                    build.context_window, draft.config.head_dim, c.rope_theta, c.rope_scaling_factor))
        self.pick = kernels.encode(tiles, hidden, build.activations, scale=c.logit_scale, gather=True)
        self.head = kernels.linear(tiles, hidden, self.vocabulary, formats.weight_format, build.activations,
                                   **blocks_option(self.lm_head))
        self.top_k = kernels.top_k(tiles, self.vocabulary, self.k, mapped=token_ids is not None)

    def forward(self, embedding: nn.Tensor, hidden: nn.Tensor, chunk: Chunk, rows: nn.Tensor,
                caches: list) -> tuple[nn.Tensor, nn.Tensor, nn.Tensor, nn.Tensor]:
        """embedding, hidden f32 [n, H] -> tokens int32 [m, K], log_probs f32 [m, K], logits f32 [m, V'], d f32 [n, H];
        see docs/artifact.md."""
        m = rows.shape[0]
        if self.rope_table is not None:
            chunk = chunk._replace(rope_table=self.rope_table)
        x = self.fuse(embedding, hidden)
        for layer, cache in zip(self.layers, caches):
            x = layer(x, chunk, cache)
        picked = call(self.pick, "draft_rows", [x, rows],
                      activation_spec(self.build, (m, self.build.config.hidden_size)))
        logits = self.logits(picked)
        lists = [logits] if self.token_ids is None else [logits, self.token_ids]
        tokens, log_probs = call(self.top_k, "top_k", lists, ((m, self.k), "int32"), ((m, self.k), "float32"))
        return tokens, log_probs, logits, x

    def fuse(self, embedding: nn.Tensor, hidden: nn.Tensor) -> nn.Tensor:
        """What the layers start from: of a token's embedding and the state before it, f32 [n, H] -> f32 [n, H]."""
        return self.fc2(self.input_norm2(hidden), self.fc1(self.input_norm1(embedding)))

    def logits(self, rows: nn.Tensor) -> nn.Tensor:
        """rows: activations [m, H] -> f32 [m, V'], in the order of the frequency list."""
        return call(self.head, "draft_head", [rows, *blocks(self.lm_head)],
                    ((rows.shape[0], self.vocabulary), "float32"))
