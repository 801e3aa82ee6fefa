"""The functions that MLC's engine looks up in a library, and what for (MLC contract, section 1.2)."""

from __future__ import annotations

from dataclasses import dataclass

CHAT, TARGET, LATENT, SAMPLER = "chat", "EAGLE target", "chat with an MLA cache", "sampling on the device"
DRAFT = "EAGLE draft"
SAMPLING_DEVICES = ("cuda", "vulkan", "metal")  # where MLC samples on the device; elsewhere it does on the processor


@dataclass(frozen=True)
class Function:
    """``arguments``: their number. ``needed_for``: what the engine cannot do without it; None: it can do everything."""

    arguments: int
    needed_for: str | None


FUNCTIONS = {
    "embed": Function(2, CHAT), "alloc_embedding_tensor": Function(0, CHAT),
    "prefill": Function(3, CHAT), "batch_prefill": Function(4, CHAT),
    "extend": Function(3, LATENT), "batch_extend": Function(4, LATENT),
    "decode": Function(3, CHAT), "batch_decode": Function(3, CHAT),
    "create_tir_paged_kv_cache": Function(5, CHAT),
    "softmax_with_temperature": Function(2, CHAT), "apply_logit_bias_inplace": Function(4, CHAT),
    "apply_penalty_inplace": Function(6, CHAT), "apply_bitmask_inplace": Function(3, CHAT),
    "batch_verify": Function(3, "target of a draft model of its own"),
    "prefill_to_last_hidden_states": Function(3, TARGET), "batch_prefill_to_last_hidden_states": Function(3, TARGET),
    "decode_to_last_hidden_states": Function(3, None), "batch_decode_to_last_hidden_states": Function(3, None),
    "batch_verify_to_last_hidden_states": Function(3, TARGET), "get_logits": Function(2, TARGET),
    "scatter_probs": Function(3, TARGET), "gather_probs": Function(3, TARGET),
    "scatter_hidden_states": Function(3, TARGET), "gather_hidden_states": Function(3, TARGET),
    "multinomial_from_uniform": Function(3, SAMPLER), "argsort_probs": Function(1, SAMPLER),
    "sample_with_top_p": Function(5, SAMPLER), "sampler_take_probs": Function(5, SAMPLER),
    "renormalize_by_top_p": Function(3, SAMPLER), "sampler_verify_draft_tokens": Function(7, SAMPLER),
    "fuse_embed_hidden_states": Function(3, DRAFT),
    "create_flashinfer_paged_kv_cache": Function(5, None), "batch_get_logits": Function(2, None),
    "batch_select_last_hidden_states": Function(3, None), "cuda_graph_alloc_init": Function(0, None),
}
# What a draft model's own library must have.
DRAFT_FUNCTIONS = ("embed", "alloc_embedding_tensor", "create_tir_paged_kv_cache", "fuse_embed_hidden_states",
                   "prefill_to_last_hidden_states", "batch_prefill_to_last_hidden_states",
                   "decode_to_last_hidden_states", "batch_decode_to_last_hidden_states",
                   "gather_probs", "scatter_probs", "gather_hidden_states", "scatter_hidden_states")
