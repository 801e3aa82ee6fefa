"""The tensors of a BlockFFN model: canonical names and shapes, and how files spell them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import BlockFFNConfig

Shape = tuple[int, ...]

# Constants that some converters save with the weights; the model recomputes them.
HARMLESS_SUFFIXES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


@dataclass(frozen=True)
class Stored:
    """One way a file may hold a tensor: ``canonical = stored.reshape(view).transpose(axes)``."""

    name: str
    shape: Shape
    view: Shape
    axes: tuple[int, ...]

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """Stored rows that hold canonical rows start..stop-1: all of them if the row axis is not outermost."""
        if self.axes[0] != 0:
            return 0, self.shape[0]
        stored_per_row = self.shape[0] // self.view[0]
        return start * stored_per_row, stop * stored_per_row

    def to_canonical(self, stored: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Canonical rows start..stop-1, C-contiguous, from the stored rows named by ``rows``."""
        if self.axes[0] != 0:
            return np.ascontiguousarray(stored.reshape(self.view).transpose(self.axes)[start:stop])
        return np.ascontiguousarray(stored.reshape(stop - start, *self.view[1:]).transpose(self.axes))


def expected_shapes(config: BlockFFNConfig) -> dict[str, Shape]:
    """Canonical tensor name -> shape, in the order of the forward pass.

    With V vocabulary, H hidden, E experts, D expert size: ``model.embed_tokens.weight [V, H]``, per layer
    ``mlp.up_proj [E, D, H]`` and ``mlp.down_proj [E, H, D]``; ``lm_head.weight [V, H]`` only when untied.
    """
    vocabulary, hidden = config.vocab_size, config.hidden_size
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config.num_hidden_layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def spellings(config: BlockFFNConfig, name: str, shape: Shape) -> list[Stored]:
    """The ways a file may hold canonical tensor ``name``; the first is the released one for ``config.ffn_type``."""
    hidden, experts, size = config.hidden_size, config.num_experts, config.expert_size
    prefix, _, last = name.rpartition("mlp.")
    if last == "up_proj":
        flat = (experts * size, hidden)
        released = Stored(name, flat if config.ffn_type == "block_linear" else shape, shape, (0, 1, 2))
        return [released, Stored(f"{prefix}mlp.experts.up_proj.weight", shape, shape, (0, 1, 2)),
                Stored(f"{prefix}mlp.mlp.up_proj", flat, shape, (0, 1, 2))]
    if last == "down_proj":
        released = Stored(name, shape, shape, (0, 1, 2))
        if config.ffn_type == "block_linear":
            released = Stored(name, (hidden, experts * size), (hidden, experts, size), (1, 0, 2))
        return [released, Stored(f"{prefix}mlp.experts.down_proj.weight", shape, shape, (0, 1, 2)),
                Stored(f"{prefix}mlp.mlp.down_proj", (experts * size, hidden), (experts, size, hidden), (0, 2, 1))]
    return [Stored(name, shape, shape, tuple(range(len(shape))))]


def _layer_shapes(config: BlockFFNConfig) -> dict[str, Shape]:
    hidden, experts, size = config.hidden_size, config.num_experts, config.expert_size
    shapes = {
        "input_layernorm.weight": (hidden,),
        **{f"self_attn.{name}": shape for name, shape in _attention_shapes(config).items()},
        "post_attention_layernorm.weight": (hidden,),
        "mlp.router_proj.weight": (experts, hidden),
        "mlp.router_norm.weight": (experts,),
        "mlp.up_proj": (experts, size, hidden),
        "mlp.down_proj": (experts, hidden, size),
    }
    if config.norm_after_router != "rms":
        del shapes["mlp.router_norm.weight"]
    return shapes


def _attention_shapes(config: BlockFFNConfig) -> dict[str, Shape]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    if config.is_mla:
        q_rank, kv_rank = config.q_lora_rank, config.kv_lora_rank
        shapes: dict[str, Shape] = {
            "q_a_proj.weight": (q_rank, hidden),
            "q_a_layernorm.weight": (q_rank,),
            "q_b_proj.weight": (heads * config.qk_head_dim, q_rank),
            "kv_a_proj_with_mqa.weight": (kv_rank + config.qk_rope_head_dim, hidden),
            "kv_a_layernorm.weight": (kv_rank,),
            "kv_b_proj.weight": (heads * (config.qk_nope_head_dim + config.head_dim), kv_rank),
            "o_proj.weight": (hidden, heads * config.head_dim),
        }
        biased = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")
    else:
        kv_width = config.num_key_value_heads * config.head_dim
        shapes = {
            "q_proj.weight": (heads * config.head_dim, hidden),
            "k_proj.weight": (kv_width, hidden),
            "v_proj.weight": (kv_width, hidden),
            "o_proj.weight": (hidden, heads * config.head_dim),
        }
        biased = ("q_proj", "k_proj", "v_proj", "o_proj")
    if config.attention_bias:
        shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biased}
    return shapes
