"""Building blocks of the Relax graph: each declares its weights, where they come from in a checkpoint,
and the hand-written kernel that uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tvm
import tvm.relax.frontend.nn as nn
from tvm.relax.frontend.nn import op

from schedules import q4
from schedules.activations import activation_shape
from schedules.layout import FLOAT_FORMATS, Q4_SCALE_DTYPES, pack_rows, row_blocks, stored_shape
from schedules.tiles import CpuTiles, GpuTiles

from .checkpoint.draft import Draft
from .config import BlockFFNConfig
from .quantization import Quantization, check_range

READ = "read"  # key of a parameter's attrs: function(checkpoint) -> numpy array as stored
LOGICAL_SHAPE = "logical_shape"  # key of a packed parameter's attrs: its shape before packing
MLC_CACHES = ("mla", "mqa", "mha")  # docs/mlc.md, "The kind of cache"


@dataclass(frozen=True)
class Build:
    """Everything a layer needs to know: the model, the formats, the kernels and their tiles, the limits, the draft
    model if there is to be one. ``largest_buffer``: bytes that the device can hold in one piece, None if any number.
    ``mlc``: what to compile MLC's functions for as well, None if they are not wanted; ``mlc_cache``: how latent
    attention uses MLC's cache, one of ``MLC_CACHES``."""

    config: BlockFFNConfig
    quantization: Quantization
    activations: str  # what matrices are multiplied by: one of schedules.activations
    kernels: ModuleType
    tiles: CpuTiles | GpuTiles
    context_window: int
    prefill_chunk: int
    draft: Draft | None = None
    largest_buffer: int | None = None
    mlc: tvm.target.Target | None = None
    mlc_cache: str = "mha"

    @property
    def on_gpu(self) -> bool:
        """Whether kernels are those of the GPU family."""
        return isinstance(self.tiles, GpuTiles)

    @property
    def latent_cache(self) -> bool:
        """Whether MLC's cache is of its MLA kind."""
        return self.config.is_mla and self.mlc_cache == "mla"


def parameter(shape: Sequence[int], dtype: str, read: Callable[[Any], np.ndarray]) -> nn.Parameter:
    """A weight of ``shape`` and ``dtype`` in the artifact; ``read(checkpoint)`` makes it."""
    result = nn.Parameter(tuple(shape), dtype)
    result.attrs[READ] = read
    return result


def vector_parameter(build: Build, names: Sequence[str], width: int) -> nn.Parameter:
    """A norm's weight or a bias: checkpoint vectors one after the other, in the model's dtype."""
    dtype = build.quantization.model_dtype

    def read(checkpoint: Any) -> np.ndarray:
        values = np.concatenate([checkpoint.read(name) for name in names])
        check_range(values, dtype, names[0])
        return values.astype(dtype)

    return parameter((width,), dtype, read)


def matrix_parameter(shape: Sequence[int], weight_format: str, tile: int, name: str,
                     read_rows: Callable[[Any], np.ndarray]) -> nn.Parameter:
    """A packed matrix: ``read_rows(checkpoint)`` gives the logical [..., out, in] of ``shape``."""
    def read(checkpoint: Any) -> np.ndarray:
        rows = read_rows(checkpoint)
        check_range(rows, Q4_SCALE_DTYPES.get(weight_format, weight_format), name)
        return pack_rows(rows, tile, weight_format) if weight_format in FLOAT_FORMATS else q4.store(rows, weight_format)

    result = parameter(*stored_shape(weight_format, shape, tile), read)
    result.attrs[LOGICAL_SHAPE] = tuple(shape)
    return result


def blocks_parameter(build: Build, shape: tuple[int, int], name: str,
                     read_rows: Callable[[Any], np.ndarray]) -> nn.Parameter | nn.ParameterList:
    """A packed matrix [out, in], or blocks of its rows where the device has no buffer for all of it."""
    weight_format, tile = build.quantization.weight_format, build.tiles.output_tile
    counts = row_blocks(weight_format, shape, tile, build.largest_buffer)
    if len(counts) == 1:
        return matrix_parameter(shape, weight_format, tile, name, read_rows)

    def block(first: int, count: int) -> nn.Parameter:
        return matrix_parameter((count, shape[1]), weight_format, tile, name,
                                lambda checkpoint: read_rows(checkpoint)[first : first + count])

    return nn.ParameterList([block(sum(counts[:i]), count) for i, count in enumerate(counts)])


def blocks(weight: nn.Parameter | nn.ParameterList) -> list[nn.Parameter]:
    """The tensors of a ``blocks_parameter``, a kernel's arguments."""
    return [weight] if isinstance(weight, nn.Parameter) else list(weight)


def blocks_option(weight: nn.Parameter | nn.ParameterList) -> dict[str, tuple[int, ...]]:
    """What to tell a kernel of them: nothing, or how many rows each has."""
    if isinstance(weight, nn.Parameter):
        return {}
    return {"row_blocks": tuple(block.attrs[LOGICAL_SHAPE][0] for block in weight)}


def call(func: tvm.tirx.PrimFunc, name: str, args: Sequence[Any], *outputs: tuple[Sequence[Any], str]) -> Any:
    """Bind a kernel; ``outputs`` are (shape, dtype). Returns a tensor, or a tuple for several."""
    out = [nn.Tensor.placeholder(tuple(shape), dtype) for shape, dtype in outputs]
    return op.tensor_ir_op(func, name, list(args), out[0] if len(out) == 1 else out)


def activation_spec(build: Build, shape: Sequence[Any]) -> tuple[tuple, str]:
    """Shape and dtype of activations [..., width] that feed a matrix."""
    return activation_shape(build.activations, shape)


class Linear(nn.Module):
    """y = x W^T + b; see the kernel ``linear``. ``name``: of the kernel, for people. ``names``: checkpoint matrices
    stacked along the outputs."""

    def __init__(self, build: Build, name: str, inputs: int, outputs: int, names: Sequence[str], *,
                 bias: bool = False, **kernel_options: Any) -> None:
        self.name, self.outputs = name, outputs

        def stacked(checkpoint: Any) -> np.ndarray:
            parts = [checkpoint.read(f"{name}.weight") for name in names]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        weight_format = build.quantization.weight_format
        self.weight = blocks_parameter(build, (outputs, inputs), names[0], stacked)
        self.bias = vector_parameter(build, [f"{name}.bias" for name in names], outputs) if bias else None
        self.kernel = build.kernels.linear(build.tiles, inputs, outputs, weight_format, build.activations,
                                           bias_dtype=build.quantization.model_dtype if bias else "",
                                           **blocks_option(self.weight), **kernel_options)

    def forward(self, x: nn.Tensor, residual: nn.Tensor | None = None) -> nn.Tensor:
        args = [tensor for tensor in (x, *blocks(self.weight), self.bias, residual) if tensor is not None]
        return call(self.kernel, self.name, args, ((x.shape[0], self.outputs), "float32"))


class RMSNorm(nn.Module):
    """Root-mean-square norm of the first ``width`` columns of a row, for a matrix to multiply by."""

    def __init__(self, build: Build, name: str, width: int, eps: float, **kernel_options: Any) -> None:
        self.build, self.name, self.width = build, name.rsplit(".", 1)[-1], width
        self.weight = vector_parameter(build, [f"{name}.weight"], width)
        self.kernel = build.kernels.rms_norm(build.tiles, width, eps, build.quantization.model_dtype,
                                             build.activations, **kernel_options)

    def forward(self, x: nn.Tensor, rows: nn.Tensor | None = None) -> nn.Tensor:
        args = [tensor for tensor in (x, self.weight, rows) if tensor is not None]
        count = (x if rows is None else rows).shape[0]
        return call(self.kernel, self.name, args, activation_spec(self.build, (count, self.width)))


class Encode(nn.Module):
    """Float32 rows as activations for a matrix to multiply by; nothing to do where those are float32."""

    def __init__(self, build: Build, width: int) -> None:
        self.build, self.width = build, width
        self.kernel = None if build.activations == "f32" else build.kernels.encode(build.tiles, width,
                                                                                   build.activations)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        if self.kernel is None:
            return x
        return call(self.kernel, "encode", [x], activation_spec(self.build, (x.shape[0], self.width)))


class Embedding(nn.Module):
    """The token table; a tied lm_head multiplies by the same packed weight."""

    def __init__(self, build: Build) -> None:
        config = build.config
        name = "model.embed_tokens.weight"
        weight_format = build.quantization.weight_format
        self.width, self.vocab = config.hidden_size, config.vocab_size
        self.weight = blocks_parameter(build, (self.vocab, self.width), name, lambda checkpoint: checkpoint.read(name))
        options = blocks_option(self.weight)
        self.kernel = build.kernels.embedding(build.tiles, self.vocab, self.width, weight_format, config.scale_emb,
                                              **options)
        self.head = build.kernels.linear(build.tiles, self.width, self.vocab, weight_format, build.activations,
                                         **options)

    def forward(self, ids: nn.Tensor) -> nn.Tensor:
        return call(self.kernel, "embedding", [ids, *blocks(self.weight)], ((ids.shape[0], self.width), "float32"))

    def logits(self, hidden: nn.Tensor) -> nn.Tensor:
        """hidden activations [m, H] -> f32 [m, V] through the embedding's own rows."""
        return call(self.head, "lm_head", [hidden, *blocks(self.weight)], ((hidden.shape[0], self.vocab), "float32"))
