"""The CPU family: vector kernels for LLVM (AVX-512, AVX2, SSE, NEON)."""

from ..builder import ORIGIN
from ..layout import FLOAT_FORMATS, Q4_FORMATS
from .accept import accept
from .attention import attention
from .cache import append_heads, append_latent, commit
from .embedding import embedding
from .encode import encode
from .gated_silu import gated_silu
from .heads import expanded_heads, latent_heads, rope_heads, value_up, widen
from .latent_query import latent_query
from .linear import linear, linear_heads
from .norm import rms_norm
from .peak import peak
from .rope import rope_query
from .router import router
from .serving import (
    apply_bitmask,
    apply_logit_bias,
    apply_penalty,
    gather_rows,
    row_numbers,
    scatter_rows,
    softmax_with_temperature,
    whole_vocabulary,
)
from .sparse_down import sparse_down
from .sparse_up import sparse_up
from .top_k import top_k
from .union import union

FORMATS = (*FLOAT_FORMATS, *Q4_FORMATS)  # weight formats these kernels read

__all__ = ["FORMATS", "ORIGIN", "accept", "append_heads", "append_latent", "apply_bitmask", "apply_logit_bias",
           "apply_penalty", "attention", "commit", "embedding", "encode", "expanded_heads", "gated_silu", "gather_rows",
           "latent_heads", "latent_query", "linear", "linear_heads", "peak", "rms_norm", "rope_heads", "rope_query",
           "router", "row_numbers", "scatter_rows", "softmax_with_temperature", "sparse_down", "sparse_up", "top_k",
           "union", "value_up", "whole_vocabulary", "widen"]
