"""The GPU family: work-group kernels for OpenCL, Vulkan, CUDA and Metal."""

from ..builder import ORIGIN
from ..layout import FLOAT_FORMATS, Q4_FORMATS
from .attention import attention
from .cache import append_heads, append_latent, commit
from .embedding import embedding
from .encode import encode
from .gated_silu import gated_silu
from .heads import expanded_heads, latent_heads, rope_heads, value_up, widen
from .latent_pages import latent_prefill, latent_rows, merge_latents
from .latent_query import latent_query
from .linear import linear, linear_heads
from .norm import rms_norm
from .paged_attention import merge_state, paged_decode, paged_prefill, ragged_prefill
from .peak import peak
from .rope import rope_query
from .router import router
from .sampling import multinomial, renormalize_top_p, sample_top_p, take_probs, verify_drafts
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
from .sort import sort_pass
from .sparse_down import sparse_down
from .sparse_up import sparse_up
from .top_k import argmax, top_k
from .union import union

FORMATS = (*FLOAT_FORMATS, *Q4_FORMATS)  # weight formats these kernels read

__all__ = ["FORMATS", "ORIGIN", "append_heads", "append_latent", "apply_bitmask", "apply_logit_bias", "apply_penalty",
           "argmax", "attention", "commit", "embedding", "encode", "expanded_heads", "gated_silu", "gather_rows",
           "latent_heads", "latent_prefill", "latent_query", "latent_rows", "linear", "linear_heads", "merge_latents",
           "merge_state", "multinomial", "paged_decode", "paged_prefill", "peak", "ragged_prefill",
           "renormalize_top_p", "rms_norm", "rope_heads", "rope_query", "router", "row_numbers", "sample_top_p",
           "scatter_rows", "softmax_with_temperature", "sort_pass", "sparse_down", "sparse_up", "take_probs", "top_k",
           "union", "value_up", "verify_drafts", "whole_vocabulary", "widen"]
