"""What MLC's engine reads of a library before it uses it (MLC contract, section 1.6)."""

from __future__ import annotations

from typing import Any

from ..layers import Build
from .kv_cache import cache_heads

MAX_SEQUENCES = 8  # in a batch


def mlc_metadata(build: Build) -> dict[str, Any]:
    """The fields of ``_metadata()`` that hold with MLC's functions. ``build``: with the configuration of the model that
    the cache is of."""
    heads, kv_heads, dim = cache_heads(build)
    return {"max_batch_size": MAX_SEQUENCES, "kv_state_kind": "kv_cache", "seqlen_padding_factor": 1,
            "kv_cache": {"num_hidden_layers": build.config.num_hidden_layers, "num_attention_heads": heads,
                         "num_key_value_heads": kv_heads, "head_dim": dim}}
