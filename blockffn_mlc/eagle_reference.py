"""The EAGLE draft in plain PyTorch: the oracle of the tests and the network that the demo's draft is trained with.

Row i is the pair (token i + 1, the target's state before it, h_i); its output d_i estimates h_{i + 1}. Written from the
equations (EAGLE, arXiv 2401.15077, section 4.1, with the two input norms and the frequency list of FR-Spec,
arXiv 2502.14856, that the released BlockFFN draft has).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from .reference import Reference, _heads, _rms_norm, _rotate, rope_table

Cache = list[tuple[Tensor, Tensor]]
"""Per layer the rotated keys and the values, each [B, kv heads, rows, head_dim]"""


@dataclass(frozen=True)
class DraftShape:
    """The sizes that a draft's ``config.json`` gives; everything else is the target's."""

    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


class EagleReference:
    """The draft as a function of ``tensors`` (released names, float32) and of the target's embedding and lm_head.

    ``frequent`` holds the token ids that the draft can name, int64 [V']; None means all of them.
    Raises KeyError for a missing tensor.
    """

    def __init__(self, shape: DraftShape, tensors: Mapping[str, Tensor], target: Reference,
                 frequent: Tensor | None = None) -> None:
        self.shape = shape
        self.tensors = tensors
        self.target = target
        head = "model.embed_tokens" if target.config.tie_word_embeddings else "lm_head"
        self.head = target.tensors[head + ".weight"]
        if frequent is not None:
            self.head = self.head[frequent]
        self.frequent = torch.arange(len(self.head)) if frequent is None else frequent

    @classmethod
    def load(cls, folder: str | Path, target: Reference) -> EagleReference:
        """The draft of a folder with config.json, model.safetensors and, if its head is cut, freq_*.json."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = DraftShape(**{name: config[name] for name in DraftShape.__dataclass_fields__})
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        lists = [torch.tensor(json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("freq_*.json")]
        return cls(shape, tensors, target, *lists)

    def forward(self, ids: Tensor, hidden: Tensor, positions: Tensor | None = None, past: Cache | None = None,
                mask: Tensor | None = None) -> tuple[Tensor, Cache]:
        """d [B, T, H] of the rows ``ids`` (integer [B, T]) and ``hidden`` [B, T, H], and the cache with them.

        Without the other arguments the rows are one causal sequence from position 0. ``mask`` (bool [T, rows of the
        cache, the new ones included]) says what each row attends to; ``positions`` is integer [T].
        """
        config, target = self.target.config, self.target
        rows = ids.shape[1]
        if positions is None:
            positions, mask = torch.arange(rows), torch.ones(rows, rows, dtype=torch.bool).tril()
        cos, sin = (table[positions] for table in
                    rope_table(config, int(positions.max()) + 1, self.shape.head_dim))
        embedding = F.embedding(ids.long(), target.tensors["model.embed_tokens.weight"]) * config.scale_emb
        x = self._linear("fc", torch.cat([self._norm("input_norm1", embedding), self._norm("input_norm2", hidden)], -1))
        cache = []
        for layer in range(self.shape.num_hidden_layers):
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
        return _rms_norm(x, self.tensors[name + ".weight"], self.target.config.rms_norm_eps)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[name + ".weight"], self.tensors.get(name + ".bias"))

    def _attention(self, prefix: str, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None,
                   mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Grouped-query attention of the new rows to the old and new ones that ``mask`` allows."""
        shape = self.shape
        q = _rotate(_heads(self._linear(prefix + "q_proj", x), shape.num_attention_heads), cos, sin)
        k = _rotate(_heads(self._linear(prefix + "k_proj", x), shape.num_key_value_heads), cos, sin)
        v = _heads(self._linear(prefix + "v_proj", x), shape.num_key_value_heads)
        k = k.to(v.dtype)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        groups = shape.num_attention_heads // shape.num_key_value_heads
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.repeat_interleave(groups, 1),
                                               v.repeat_interleave(groups, 1), mask)
        return self._linear(prefix + "o_proj", mixed.transpose(1, 2).flatten(2)), (k, v)
