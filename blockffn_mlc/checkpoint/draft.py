"""An EAGLE draft model's folder, checked as a whole and against the model that it drafts for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import BlockFFNConfig
from ..draft_config import DraftConfig
from ..errors import UserError
from .files import locate_tensors
from .frequency import find_frequent_tokens
from .names import Shape
from .tensor_file import TensorFile, check_stored

PREFIX = "draft."  # of a draft's tensors among those of its target
# The target's own rows and states take their place.
_IGNORED = ("embed_tokens.weight", "lm_head.weight", "layers.0.input_layernorm.weight")


class Source(Protocol):
    """Where weights come from."""

    def read(self, name: str) -> np.ndarray:
        """One tensor by canonical name, float32."""


@dataclass(frozen=True)
class Draft:
    """What a build must know of a draft. ``has_bias``: fc has one. ``token_ids``: what its head can name, None for
    the whole vocabulary."""

    config: DraftConfig
    has_bias: bool
    token_ids: tuple[int, ...] | None


class DraftCheckpoint:
    """An opened draft. Its tensors' canonical names are the released ones, with ``fc`` cut into ``fc1`` | ``fc2``: its
    left half, which has the bias, and its right half. (``fc`` whole can be read too.)"""

    def __init__(self, draft: Draft, folder: Path, files: Mapping[str, TensorFile]) -> None:
        self.draft = draft
        self.folder = folder
        self._files = files

    def read(self, name: str) -> np.ndarray:
        """One whole tensor, float32, C-contiguous. Raises UserError on NaN or infinity."""
        stored = "fc." + name[4:] if name.startswith(("fc1.", "fc2.")) else name
        file = self._files[stored]
        values = file.read_rows(stored, 0, file.shapes[stored][0])
        if stored == "fc.weight" and name != stored:
            half = values.shape[1] // 2
            values = np.ascontiguousarray(values[:, :half] if name.startswith("fc1.") else values[:, half:])
        return values


class WithDraft:
    """The tensors of a model and, under names that begin with ``PREFIX``, those of its draft."""

    def __init__(self, target: Source, draft: DraftCheckpoint) -> None:
        self._target, self._draft = target, draft

    def read(self, name: str) -> np.ndarray:
        """One tensor by canonical name, float32."""
        if name.startswith(PREFIX):
            return self._draft.read(name.removeprefix(PREFIX))
        return self._target.read(name)


def open_draft(folder: str | Path, target: BlockFFNConfig, vocabulary: int | None = None) -> DraftCheckpoint:
    """Open ``config.json``, the weights and the frequency list of a draft for ``target``; ``vocabulary``: how many of
    the list's ids to use (None: all). Names, shapes and dtypes are checked from the files' headers.

    Raises UserError naming the file, tensor or field, what was expected and what was found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--draft {folder}: no such folder; expected an EAGLE draft with config.json")
    config = DraftConfig.from_file(folder / "config.json", target)
    files = locate_tensors(folder)
    has_bias = "fc.bias" in files
    expected = expected_shapes(config, has_bias)
    for name, shape in expected.items():
        if name not in files:
            raise UserError(f"{folder}: tensor {name!r} is missing; expected shape {list(shape)}")
        check_stored(files[name], name, shape)
    for name in files:
        if name not in expected and name not in _IGNORED:
            raise UserError(f"{files[name].path}: tensor {name!r}: not a tensor of an EAGLE draft as config.json "
                            "describes it; expected no surplus tensors")
    token_ids = find_frequent_tokens(folder, target.vocab_size, vocabulary)
    return DraftCheckpoint(Draft(config, has_bias, token_ids), folder, files)


def expected_shapes(config: DraftConfig, has_bias: bool) -> dict[str, Shape]:
    """Released tensor name -> shape."""
    hidden, inner = config.hidden_size, config.intermediate_size
    width, kv_width = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    shapes: dict[str, Shape] = {"fc.weight": (hidden, 2 * hidden)}
    if has_bias:
        shapes["fc.bias"] = (hidden,)
    shapes |= {"input_norm1.weight": (hidden,), "input_norm2.weight": (hidden,)}
    for layer in range(config.num_hidden_layers):
        of_layer = {
            "self_attn.q_proj": (width, hidden), "self_attn.k_proj": (kv_width, hidden),
            "self_attn.v_proj": (kv_width, hidden), "self_attn.o_proj": (hidden, width),
            "post_attention_layernorm": (hidden,), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner)}
        if layer > 0:
            of_layer["input_layernorm"] = (hidden,)
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    return shapes
