"""The PyTorch reference with what a build rounds besides weights: cached values to the cache's dtype, and activations
to 8-bit codes (or about 15 bits) in front of every quantised matrix. Shares no code with the kernels."""

from functools import partial

import torch
import torch.nn.functional as F

from blockffn_mlc.config import LATENT_NORM_EPS
from blockffn_mlc.reference import Reference, rotate, split_heads


class CacheReference(Reference):
    """The reference with what the cache stores rounded to its dtype: MLA's latent and rotated key, or key and value."""

    def __init__(self, config, tensors, cache_dtype):
        super().__init__(config, tensors)
        self.cache_dtype = getattr(torch, cache_dtype)

    def _cached(self, x):
        return x.to(self.cache_dtype).float()

    def _norm(self, name, x, eps=None):
        y = super()._norm(name, x, eps)
        return self._cached(y) if name.endswith("kv_a_layernorm") else y

    def _attend(self, prefix, q, k, v):
        if self.config.is_mla:
            nope = self.config.qk_nope_head_dim
            return super()._attend(prefix, q, torch.cat([k[..., :nope], self._cached(k[..., nope:])], -1), v)
        return super()._attend(prefix, q, self._cached(k), self._cached(v))


class CodedReference(CacheReference):
    """As well, each group of 32 activations is rounded to codes -largest..largest where a quantised matrix reads it.
    MLA's up projections are absorbed, because that decides what they read."""

    largest: int  # code

    def _round(self, x):
        largest, width = self.largest, x.shape[-1]
        groups = F.pad(x, (0, -width % 32)).unflatten(-1, (-1, 32))
        top = groups.abs().amax(-1, keepdim=True)
        codes = (groups * torch.where(top > 0, largest / top, 0.0)).round()
        return (codes * (top / largest)).flatten(-2)[..., :width]

    def _norm(self, name, x, eps=None):
        y = super()._norm(name, x, eps)
        return self._round(y) if name.endswith(("input_layernorm", "q_a_layernorm", "model.norm")) else y

    def _linear(self, name, x):
        return super()._linear(name, self._round(x) if name.endswith("o_proj") else x)

    def _mla(self, prefix, x, cos, sin):
        c = self.config
        heads, nope, rope, latent = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank
        kv_b = self.tensors[prefix + "kv_b_proj.weight"].unflatten(0, (heads, -1))
        k_up, v_up = kv_b.split([nope, c.head_dim], 1)
        q = self._linear(prefix + "q_b_proj",
                         self._norm(prefix + "q_a_layernorm", self._linear(prefix + "q_a_proj", x), LATENT_NORM_EPS))
        q_nope, q_rope = split_heads(q, heads).split([nope, rope], -1)
        keys, k_rope = self._linear(prefix + "kv_a_proj_with_mqa", x).split([latent, rope], -1)
        keys = self._norm(prefix + "kv_a_layernorm", keys, LATENT_NORM_EPS).unsqueeze(1)
        q = torch.cat([torch.einsum("bhtd,hdl->bhtl", self._round(q_nope), k_up), rotate(q_rope, cos, sin)], -1)
        k = torch.cat([keys, self._cached(rotate(k_rope.unsqueeze(1), cos, sin))], -1)
        scores = q @ k.transpose(2, 3) * c.qk_head_dim**-0.5
        scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)
        values = torch.einsum("bhtl,hvl->bthv", self._round(scores.softmax(-1) @ keys), v_up)
        return self._linear(prefix + "o_proj", values.flatten(2))

    def _ffn(self, prefix, x):
        _, scores, logits = super()._ffn(prefix, x)
        inner = torch.einsum("bth,edh->bted", self._round(x), self.tensors[prefix + "up_proj"])
        inner = self._round(F.silu(inner) * scores.unsqueeze(-1))
        return torch.einsum("bted,ehd->bth", inner, self.tensors[prefix + "down_proj"]), scores, logits


class Int8Reference(CodedReference):
    largest = 127


class Int8x2Reference(CodedReference):
    largest = 16256


def reference_for(mode, cache_dtype):
    """The reference of a build with activations ``mode``."""
    kind = {"f32": CacheReference, "int8": Int8Reference, "int8x2": Int8x2Reference}[mode]
    return partial(kind, cache_dtype=cache_dtype)
