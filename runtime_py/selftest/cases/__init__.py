"""What each kernel is called with, and what its twin says of that.

A case is a function of a ``Subject`` and a number of tokens; it gives the arguments of one or more calls, in the order
of the kernel's parameters: an array is an input, a number a scalar, a ``Written`` an output or what is changed in
place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..subject import Subject
from . import attention, cache, dense, experts, latent_pages, paged, rows, sampling, serving

Case = Callable[[Subject, int], Iterator[list[Any]]]

CASES: dict[str, Case] = {
    "accept": rows.accept,
    "append_heads": cache.append_heads,
    "append_latent": cache.append_latent,
    "apply_bitmask": serving.apply_bitmask,
    "apply_logit_bias": serving.apply_logit_bias,
    "apply_penalty": serving.apply_penalty,
    "argmax": rows.argmax,
    "attention": attention.attention,
    "commit": cache.commit,
    "embedding": dense.embedding,
    "encode": rows.encode,
    "expanded_heads": serving.expanded_heads,
    "gated_silu": rows.gated_silu,
    "gather_rows": serving.gather_rows,
    "latent_heads": serving.latent_heads,
    "latent_prefill": latent_pages.latent_prefill,
    "latent_query": attention.latent_query,
    "latent_rows": latent_pages.latent_rows,
    "linear": dense.linear,
    "linear_heads": dense.linear_heads,
    "merge_latents": latent_pages.merge_latents,
    "merge_state": paged.merge_state,
    "multinomial": sampling.multinomial,
    "paged_decode": paged.paged_decode,
    "paged_prefill": paged.paged_prefill,
    "peak": rows.peak,
    "ragged_prefill": paged.ragged_prefill,
    "renormalize_top_p": sampling.renormalize_top_p,
    "rms_norm": rows.rms_norm,
    "rope_heads": serving.rope_heads,
    "rope_query": rows.rope_query,
    "router": experts.router,
    "row_numbers": serving.row_numbers,
    "sample_top_p": sampling.sample_top_p,
    "scatter_rows": serving.scatter_rows,
    "softmax_with_temperature": serving.softmax_with_temperature,
    "sort_pass": sampling.sort_pass,
    "sparse_down": experts.sparse_down,
    "sparse_up": experts.sparse_up,
    "take_probs": sampling.take_probs,
    "top_k": rows.top_k,
    "union": experts.union,
    "value_up": serving.value_up,
    "verify_drafts": sampling.verify_drafts,
    "whole_vocabulary": serving.whole_vocabulary,
    "widen": serving.widen,
}
"""By the name of the kernel's factory."""
