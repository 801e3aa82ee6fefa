"""How far a device's logits are from the processor's, and greedy choices that such a difference cannot change."""

import numpy as np

# Two logits that are further apart than this share of the logits' root mean square do not change places between
# devices (docs/devices.md); by the precision of the cache.
TIE = {"float32": 1e-4, "float16": 1e-3}


def check_no_tie(logits, cache_dtype):
    """Every row's choice is clear. Returns the bound."""
    bound = TIE[cache_dtype] * np.sqrt(np.mean(logits.astype(np.float64)**2))
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    assert (first - second).min() > bound
    return bound


def check_bound(logits, others, cache_dtype):
    """Choices among ``others``, of another device, can only differ from those among ``logits`` by the bound: both
    logits may be off, in opposite directions. They do not, as no row has a tie."""
    assert 0 < 2 * np.abs(others - logits).max() <= check_no_tie(logits, cache_dtype)
