"""Weight formats: what is stored, in MLC's names and rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import UserError


@dataclass(frozen=True)
class Quantization:
    """``weight_dtype``: matrices. ``model_dtype``: everything else (norms, biases, router).
    ``cache_dtype``: keys and values. Half precision is storage only; arithmetic is float32.
    ``group_size``: inputs that share a scale, 0 when weights are not quantised."""

    name: str
    weight_dtype: str
    model_dtype: str
    cache_dtype: str
    group_size: int = 0


QUANTIZATIONS = {
    "q0f32": Quantization("q0f32", "float32", "float32", "float32"),
    "q0f16": Quantization("q0f16", "float16", "float16", "float16"),
}


def quantization(name: str) -> Quantization:
    """Look a format up by name; raises UserError with the formats there are."""
    if name not in QUANTIZATIONS:
        raise UserError(f"--quantization {name}: unknown format; choose one of {', '.join(QUANTIZATIONS)}")
    return QUANTIZATIONS[name]


def check_range(values: np.ndarray, dtype: str, name: str) -> None:
    """Refuse a tensor that ``dtype`` cannot hold. Raises UserError naming the tensor."""
    limit = float(np.finfo(dtype).max)
    # Two reductions instead of abs(): no temporary the size of the tensor.
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if largest > limit:
        raise UserError(f"tensor {name}: holds {largest:g}, beyond the range of {dtype} (±{limit:g}); "
                        "choose --quantization q0f32")
