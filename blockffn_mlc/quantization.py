"""Weight formats: what is stored, in MLC's names and rules."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from schedules.activations import ACTIVATIONS
from schedules.layout import Q4_FORMATS

from .errors import UserError
from .target import Target


@dataclass(frozen=True)
class Quantization:
    """``weight_format``: how matrices are stored (schedules.layout). ``model_dtype``: norms, biases, router.
    ``cache_dtype``: keys and values. Half precision is storage only."""

    name: str
    weight_format: str
    model_dtype: str
    cache_dtype: str


QUANTIZATIONS = {
    "q0f32": Quantization("q0f32", "float32", "float32", "float32"),
    "q0f16": Quantization("q0f16", "float16", "float16", "float16"),
    "q4f16_1": Quantization("q4f16_1", "q4f16_1", "float16", "float16"),
    "q4f32_1": Quantization("q4f32_1", "q4f32_1", "float32", "float32"),
}


def quantization(name: str, target: str, formats: Collection[str]) -> Quantization:
    """Look a quantisation up by name, for a target whose kernels read ``formats``.

    Raises UserError with the names to choose from.
    """
    usable = [other.name for other in QUANTIZATIONS.values() if other.weight_format in formats]
    if name not in usable:
        reason = f"target {target} has no kernels for it" if name in QUANTIZATIONS else "unknown format"
        raise UserError(f"--quantization {name}: {reason}; choose one of {', '.join(usable)}")
    return QUANTIZATIONS[name]


def activations(name: str | None, quantization: Quantization, target: Target) -> str:
    """What matrices are multiplied by: ``name``, or the target's fastest for the format (schedules.activations).

    Raises UserError when the target or the weight format rules ``name`` out.
    """
    if name is not None and name not in ACTIVATIONS:
        raise UserError(f"--activations {name}: unknown format; choose one of {', '.join(ACTIVATIONS)}")
    coded = quantization.weight_format in Q4_FORMATS and target.multiplies_bytes
    if name is None:
        return "int8" if coded else "f32"
    if name != "f32" and not coded:
        reason = f"target {target.name} ({target.host}) has no instruction for dot products of bytes"
        if quantization.weight_format not in Q4_FORMATS:
            reason = f"{quantization.name} weights are not 4-bit (--quantization q4f16_1 is)"
        raise UserError(f"--activations {name}: {reason}; choose f32")
    return name


def check_range(values: np.ndarray, dtype: str, name: str) -> None:
    """Refuse a tensor that ``dtype`` cannot hold. Raises UserError naming the tensor."""
    limit = float(np.finfo(dtype).max)
    # Two reductions instead of abs(): no temporary the size of the tensor.
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if largest > limit:
        raise UserError(f"tensor {name}: holds {largest:g}, beyond the range of {dtype} (±{limit:g}); "
                        "choose --quantization q0f32")
