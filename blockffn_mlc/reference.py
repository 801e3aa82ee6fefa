"""BlockFFN in plain PyTorch: the oracle of the tests and the network that the demo model is trained with.

Written from the equations (BlockFFN, arXiv 2507.08771, equations 1 to 3; MiniCPM's scalings), dense and masked:
every expert is computed and multiplied by its router score, which is zero for an inactive one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import open_checkpoint
from .config import LATENT_NORM_EPS, BlockFFNConfig


@dataclass(frozen=True)
class ReferenceOutput:
    """What one pass computes: B sequences, T tokens, L layers, E experts, H hidden size, V vocabulary."""

    logits: Tensor
    """float32 [B, T, V]"""
    router_scores: Tensor
    """float32 [L, B, T, E], after the router's norm; 0 for inactive experts"""
    router_logits: Tensor
    """float32 [L, B, T, E], before ReLU and norm; an expert is active where this is above 0"""
    last_hidden: Tensor
    """float32 [B, T, H], after the final norm"""


class Reference:
    """The model as a function of ``tensors``, which maps canonical names to float32 tensors.

    Canonical names are the released ones, with ``mlp.up_proj`` [E, D, H] and ``mlp.down_proj`` [E, H, D];
    ``lm_head.weight`` is not read when the embeddings are tied. Tensors that require gradients are trained
    in place by an optimizer; ``dropout`` is the rate on the embedding and on each residual branch.
    Raises KeyError for a missing tensor.
    """

    def __init__(self, config: BlockFFNConfig, tensors: Mapping[str, Tensor], dropout: float = 0.0) -> None:
        self.config = config
        self.tensors = tensors
        self.dropout = dropout

    @classmethod
    def load(cls, folder: str | Path) -> Reference:
        """The model of a checkpoint folder. Raises UserError as ``open_checkpoint`` and its ``read`` do."""
        checkpoint = open_checkpoint(folder)
        return cls(checkpoint.config, {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.expected})

    def forward(self, ids: Tensor, start: int = 0) -> ReferenceOutput:
        """Causal pass over ``ids`` (integer [B, T]), positions from ``start``."""
        config = self.config
        cos, sin = (table[start:] for table in rope_table(config, start + ids.shape[1], config.rope_dim))
        embedding = self.tensors["model.embed_tokens.weight"]
        x = F.dropout(F.embedding(ids.long(), embedding) * config.scale_emb, self.dropout)
        scores, logits = [], []
        for layer in range(config.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            attention = self._mla if config.is_mla else self._gqa
            branch = attention(prefix + "self_attn.", self._norm(prefix + "input_layernorm", x), cos, sin)
            x = x + config.residual_scale * F.dropout(branch, self.dropout)
            branch, score, logit = self._ffn(prefix + "mlp.", self._norm(prefix + "post_attention_layernorm", x))
            x = x + config.residual_scale * F.dropout(branch, self.dropout)
            scores.append(score)
            logits.append(logit)
        hidden = self._norm("model.norm", x)
        head = embedding if config.tie_word_embeddings else self.tensors["lm_head.weight"]
        return ReferenceOutput(F.linear(hidden * config.logit_scale, head).float(), torch.stack(scores),
                               torch.stack(logits), hidden)

    def _norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        return rms_norm(x, self.tensors[name + ".weight"], self.config.rms_norm_eps if eps is None else eps)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[name + ".weight"], self.tensors.get(name + ".bias"))

    def _mla(self, prefix: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Multi-head latent attention, [B, T, H] to [B, T, H]; the heads share one rotated key part."""
        config = self.config
        nope, rope, heads = config.qk_nope_head_dim, config.qk_rope_head_dim, config.num_attention_heads
        q = self._linear(prefix + "q_a_proj", x)
        q = self._linear(prefix + "q_b_proj", self._norm(prefix + "q_a_layernorm", q, LATENT_NORM_EPS))
        q_nope, q_rope = split_heads(q, heads).split([nope, rope], -1)
        latent, k_rope = self._linear(prefix + "kv_a_proj_with_mqa", x).split([config.kv_lora_rank, rope], -1)
        kv = self._linear(prefix + "kv_b_proj", self._norm(prefix + "kv_a_layernorm", latent, LATENT_NORM_EPS))
        k_nope, v = split_heads(kv, heads).split([nope, config.head_dim], -1)
        k_rope = rotate(k_rope.unsqueeze(1), cos, sin).expand(-1, heads, -1, -1)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin)], -1)
        k = torch.cat([k_nope, k_rope.to(k_nope.dtype)], -1)
        return self._attend(prefix, q, k, v)

    def _gqa(self, prefix: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Grouped-query attention, [B, T, H] to [B, T, H]."""
        config = self.config
        q = split_heads(self._linear(prefix + "q_proj", x), config.num_attention_heads)
        k = split_heads(self._linear(prefix + "k_proj", x), config.num_key_value_heads)
        v = split_heads(self._linear(prefix + "v_proj", x), config.num_key_value_heads)
        groups = config.num_attention_heads // config.num_key_value_heads
        k = rotate(k, cos, sin).repeat_interleave(groups, 1)
        return self._attend(prefix, rotate(q, cos, sin), k, v.repeat_interleave(groups, 1))

    def _attend(self, prefix: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal softmax attention over [B, heads, T, width], scaled by (width of a key)^-0.5, then o_proj.

        Keys and values of more tokens than queries include those of tokens before.
        """
        weights = q.to(v.dtype) @ k.to(v.dtype).transpose(2, 3) * q.shape[-1] ** -0.5
        future = torch.full(weights.shape[-2:], float("-inf"), dtype=weights.dtype)
        weights = (weights + future.triu(1 + k.shape[2] - q.shape[2])).softmax(-1, dtype=torch.float32)
        return self._linear(prefix + "o_proj", (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))

    def _ffn(self, prefix: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y = sum over experts of down_e(silu(up_e(x)) * A_e). Returns y [B, T, H], A and the raw logits [B, T, E]."""
        config, tensors = self.config, self.tensors
        # The router decides which experts exist for a token, so it stays in float32 under autocast.
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), tensors[prefix + "router_proj.weight"])
            scores = F.relu(logits)
            if config.norm_after_router == "rms":
                scores = rms_norm(scores, tensors[prefix + "router_norm.weight"], config.rms_norm_eps)
            elif config.norm_after_router == "sum":
                scores = scores / (scores.sum(-1, keepdim=True) * config.norm_scale + 1e-5)
        up, down = tensors[prefix + "up_proj"], tensors[prefix + "down_proj"]
        inner = F.silu(F.linear(x, up.flatten(0, 1))).unflatten(-1, (config.num_experts, config.expert_size))
        inner = inner * scores.to(inner.dtype).unsqueeze(-1)
        return F.linear(inner.flatten(-2), down.transpose(0, 1).flatten(1)), scores, logits


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 over the last axis + eps) * weight, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * width] to [B, heads, T, width]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rope_table(config: BlockFFNConfig, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin of ``width`` rotated dimensions, float32 [tokens, width / 2]."""
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(tokens).float() / config.rope_scaling_factor, frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of the last axis of [B, heads, T, rope_dim], in float32."""
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
