"""A Hugging Face checkpoint folder, checked as a whole and then read one tensor at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config import BlockFFNConfig
from ..errors import UserError
from .files import locate_tensors
from .names import Shape, Stored, expected_shapes, spellings
from .tensor_file import TensorFile, check_stored

__all__ = ["Checkpoint", "expected_shapes", "open_checkpoint"]

_COMPARE_ROWS = 8192


class Checkpoint:
    """An opened checkpoint: ``config``, ``folder`` and ``expected`` (canonical tensor name -> shape).

    Whatever the spelling in the files, FFN weights appear as ``model.layers.N.mlp.up_proj [E, D, H]`` and
    ``mlp.down_proj [E, H, D]``. No weight stays in memory between reads.
    """

    def __init__(self, config: BlockFFNConfig, folder: Path, stored: dict[str, tuple[TensorFile, Stored]]) -> None:
        self.config = config
        self.folder = folder
        self.expected = expected_shapes(config)
        self._stored = stored

    def read(self, name: str) -> np.ndarray:
        """One whole tensor, float32, C-contiguous. Raises UserError on NaN or infinity."""
        return self.read_rows(name, 0, self.expected[name][0])

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first canonical axis, float32 ``[stop - start, ...]``, C-contiguous.

        Raises UserError on NaN or infinity among them.
        """
        file, stored = self._stored[name]
        rows = file.read_rows(stored.name, *stored.rows(start, stop))
        return stored.to_canonical(rows, start, stop)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open ``config.json`` and the weights beside it: ``model.safetensors`` or ``pytorch_model.bin``, each
    whole or sharded with an index.

    Names, shapes and dtypes are checked from the files' headers. Weights are read only for a model with tied
    embeddings that has an ``lm_head.weight`` all the same: it must equal the embedding.

    Raises UserError naming the file, tensor or field, what was expected and what was found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a Hugging Face checkpoint folder with config.json")
    config = BlockFFNConfig.from_file(folder / "config.json")
    files = locate_tensors(folder)
    surplus = dict.fromkeys(files)
    stored: dict[str, tuple[TensorFile, Stored]] = {}
    for name, shape in expected_shapes(config).items():
        choice = _find(folder, files, spellings(config, name, shape))
        stored[name] = files[choice.name], choice
        del surplus[choice.name]
    tied_head = _tied_head(config, files)
    if tied_head is not None:
        del surplus[tied_head.name]
    for name in surplus:
        raise UserError(f"{files[name].path}: tensor {name!r}: not a tensor of this model as config.json describes it; "
                        "expected no surplus tensors")
    if tied_head is not None:
        _compare_tied_head(files, stored["model.embed_tokens.weight"], tied_head)
    return Checkpoint(config, folder, stored)


def _find(folder: Path, files: dict[str, TensorFile], choices: list[Stored]) -> Stored:
    for choice in choices:
        if choice.name in files:
            check_stored(files[choice.name], choice.name, choice.shape)
            return choice
    expected = choices[0]
    raise UserError(f"{folder}: tensor {expected.name!r} is missing; expected shape {list(expected.shape)}")


def _tied_head(config: BlockFFNConfig, files: dict[str, TensorFile]) -> Stored | None:
    """The superfluous ``lm_head.weight`` of a tied model, if the files have one."""
    if not config.tie_word_embeddings or "lm_head.weight" not in files:
        return None
    shape: Shape = (config.vocab_size, config.hidden_size)
    head = Stored("lm_head.weight", shape, shape, (0, 1))
    check_stored(files[head.name], head.name, head.shape)
    return head


def _compare_tied_head(files: dict[str, TensorFile], embedding: tuple[TensorFile, Stored], head: Stored) -> None:
    for start in range(0, head.shape[0], _COMPARE_ROWS):
        stop = min(start + _COMPARE_ROWS, head.shape[0])
        if not np.array_equal(files[head.name].read_rows(head.name, start, stop),
                              embedding[0].read_rows(embedding[1].name, start, stop)):
            raise UserError(f"{files[head.name].path}: tensor 'lm_head.weight': expected the values of "
                            "'model.embed_tokens.weight' (config field 'tie_word_embeddings' is true), found different "
                            "ones; remove the tensor or set the field to false")
