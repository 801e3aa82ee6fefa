"""The EAGLE draft in plain PyTorch: the oracle of the tests and the network that the demo's draft is trained with.

Row i is the pair (token i + 1, the target's state before it, h_i); its output d_i estimates h_{i + 1}. Written from the
equations (EAGLE, arXiv 2401.15077, section 4.1, with the two input norms and the frequency list of FR-Spec,
arXiv 2502.14856, that the released BlockFFN draft has).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint.draft import expected_shapes, open_draft
from .draft_config import DraftConfig
from .reference import Reference, rms_norm, rope_table, rotate, split_heads

Cache = list[tuple[Tensor, Tensor]]
"""Per layer the rotated keys and the values, each [B, kv heads, rows, head_dim]"""


class EagleReference:
    """The draft as a function of ``tensors`` (released names, float32) and of the target's embedding and lm_head.

    ``frequent`` holds the token ids that the draft can name, int64 [V']; None means all of them.
    Raises KeyError for a missing tensor.
    """

    def __init__(self, config: DraftConfig, tensors: Mapping[str, Tensor], target: Reference,
                 frequent: Tensor | None = None) -> None:
        self.config = config
        self.tensors = tensors
        self.target = target
        head = "model.embed_tokens" if target.config.tie_word_embeddings else "lm_head"
        self.head = target.tensors[head + ".weight"]
        if frequent is not None:
            self.head = self.head[frequent]
        self.frequent = torch.arange(len(self.head)) if frequent is None else frequent

    @classmethod
    def load(cls, folder: str | Path, target: Reference) -> EagleReference:
        """The draft of a folder in the released format. Raises UserError as ``open_draft`` and its ``read`` do."""
        checkpoint = open_draft(folder, target.config)
        draft = checkpoint.draft
        names = expected_shapes(draft.config, draft.has_bias)
        return cls(draft.config, {name: torch.from_numpy(checkpoint.read(name)) for name in names}, target,
                   None if draft.token_ids is None else torch.tensor(draft.token_ids))

    def forward(self, ids: Tensor, hidden: Tensor, positions: Tensor | None = None, past: Cache | None = None,
                mask: Tensor | None = None) -> tuple[Tensor, Cache]:
        """d [B, T, H] of the rows ``ids`` (integer [B, T]) and ``hidden`` [B, T, H], and the cache with them.

        Without the other arguments the rows are one causal sequence from position 0. ``mask`` (bool [T, rows of the
        cache, the new ones included]) says what each row attends to; ``positions`` is integer [T].
        """
        config, target = self.config, self.target
        rows = ids.shape[1]
        if positions is None:
            positions, mask = torch.arange(rows), torch.ones(rows, rows, dtype=torch.bool).tril()
        cos, sin = (table[positions] for table in
                    rope_table(target.config, int(positions.max()) + 1, config.head_dim))
        embedding = F.embedding(ids.long(), target.tensors["model.embed_tokens.weight"]) * target.config.scale_emb
        x = self._linear("fc", torch.cat([self._norm("input_norm1", embedding), self._norm("input_norm2", hidden)], -1))
        cache = []
        for layer in range(config.num_hidden_layers):
            prefix = f"layers.{layer}."
            normed = x if layer == 0 else self._norm(prefix + "input_layernorm", x)
            branch, keys_values = self._attention(prefix + "self_attn.", normed, cos, sin,
                                                  past[layer] if past else None, mask)
            cache.append(keys_values)
            x = x + branch
            normed = self._norm(prefix + "post_attention_layernorm", x)
            gate = F.silu(self._linear(prefix + "mlp.gate_proj", normed))
            x = x + self._linear(prefix + "mlp.down_proj", gate * self._linear(prefix + "mlp.up_proj", normed))
        return x, cache

    def logits(self, drafted: Tensor) -> Tensor:
        """float32 [..., V'] of the frequent tokens, for d [..., H]."""
        return F.linear(drafted * self.target.config.logit_scale, self.head).float()

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return rms_norm(x, self.tensors[name + ".weight"], self.target.config.rms_norm_eps)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[name + ".weight"], self.tensors.get(name + ".bias"))

    def _attention(self, prefix: str, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None,
                   mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Grouped-query attention of the new rows to the old and new ones that ``mask`` allows."""
        config = self.config
        q = rotate(split_heads(self._linear(prefix + "q_proj", x), config.num_attention_heads), cos, sin)
        k = rotate(split_heads(self._linear(prefix + "k_proj", x), config.num_key_value_heads), cos, sin)
        v = split_heads(self._linear(prefix + "v_proj", x), config.num_key_value_heads)
        k = k.to(v.dtype)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        groups = config.num_attention_heads // config.num_key_value_heads
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.repeat_interleave(groups, 1),
                                               v.repeat_interleave(groups, 1), mask)
        return self._linear(prefix + "o_proj", mixed.transpose(1, 2).flatten(2)), (k, v)
