"""Opening an artifact folder: what build.py wrote, checked before anything is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.config import BlockFFNConfig
from blockffn_mlc.errors import UserError

from .files import read_ids
from .jsonfile import int_list, path_inside, positive, read_json, required
from .weights import INDEX, load_weights

CHAT_CONFIG = "mlc-chat-config.json"
TOKEN_STREAM = "token_stream.json"
FORMAT_VERSION = 1
MASK_BITS = 64  # width of the ancestor mask in the library's interface


@dataclass(frozen=True)
class DraftModel:
    """The draft model in an artifact: its ``layers``, the ``vocab_size`` of its head, the ``top_k`` most likely tokens
    that it names per position, and one layer's cache tensor, [slots, kv_heads, width]."""

    layers: int
    vocab_size: int
    top_k: int
    cache_shape: tuple[int, ...]
    cache_dtype: str

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: Path) -> DraftModel:
        """From field ``blockffn.draft``. Raises UserError."""
        return cls(*(positive(raw, name, where) for name in ("layers", "vocab_size", "top_k")),
                   tuple(int_list(raw, "cache_shape", where)), required(raw, "cache_dtype", str, where))


@dataclass(frozen=True)
class Artifact:
    """One artifact folder. ``cache_shape`` is [slots, kv_heads, width] of one layer's cache tensor; ``draft``: None
    without a draft model; ``mmap``: use the weights' files in place."""

    path: Path
    config: BlockFFNConfig
    context_window_size: int
    prefill_chunk_size: int
    library: Path
    target: str
    host: str
    tvm_version: str
    cache_shape: tuple[int, ...]
    cache_dtype: str
    max_tree_nodes: int
    chat_config: dict[str, Any]
    draft: DraftModel | None = None
    mmap: bool = False

    @classmethod
    def open(cls, path: str | Path, mmap: bool = False) -> Artifact:
        """Read and check ``mlc-chat-config.json``. Raises UserError naming file, field and remedy."""
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected an artifact written by build.py "
                            "(python build.py alone builds the demo)")
        where = folder / CHAT_CONFIG
        raw = read_json(where)
        if "blockffn" not in raw:
            raise UserError(f"{where}: field 'blockffn' is missing: this model folder was not written by "
                            "this project's build.py")
        ours, model = required(raw, "blockffn", dict, where), required(raw, "model_config", dict, where)
        version = required(ours, "format_version", int, where)
        if version != FORMAT_VERSION:
            raise UserError(f"{where}: field 'format_version': expected {FORMAT_VERSION}, found {version}; "
                            "rebuild the artifact with build.py")
        library = path_inside(folder, required(ours, "library", str, where), where)
        if not library.is_file():
            raise UserError(f"{library}: no such file; {CHAT_CONFIG} names it as the model library: "
                            "copy the whole artifact or rebuild it")
        cache = required(ours, "cache", dict, where)
        artifact = cls(
            path=folder,
            config=BlockFFNConfig.from_dict(model, str(where)),
            context_window_size=positive(model, "context_window_size", where),
            prefill_chunk_size=positive(model, "prefill_chunk_size", where),
            library=library,
            target=required(ours, "target", str, where),
            host=required(ours, "host", str, where),
            tvm_version=required(ours, "tvm_version", str, where),
            cache_shape=tuple(int_list(cache, "shape", where)),
            cache_dtype=required(cache, "dtype", str, where),
            max_tree_nodes=positive(ours, "max_tree_nodes", where),
            chat_config=raw,
            draft=DraftModel.from_dict(required(ours, "draft", dict, where), where) if "draft" in ours else None,
            mmap=mmap,
        )
        artifact._validate(where)
        return artifact

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """All weights by name, read or mapped at the first use (see ``weights.load_weights``)."""
        return load_weights(self.path, self.mmap)

    def release_weights(self) -> None:
        """Let go of ``weights``: they are read or mapped again when somebody asks for them."""
        vars(self).pop("weights", None)

    @cached_property
    def token_stream(self) -> np.ndarray | None:
        """The text that a synthetic model was made for, int32 [n]; None for other models. Raises UserError."""
        path = self.path / TOKEN_STREAM
        if not path.exists():
            return None
        ids, vocab = read_ids(path), self.config.vocab_size
        wrong = [token for token in ids if not 0 <= token < vocab]
        if wrong or not ids:
            raise UserError(f"{path}: expected token ids from 0 to {vocab - 1}, found "
                            f"{wrong[0] if wrong else 'none'}; rebuild the artifact with build.py")
        return np.array(ids, np.int32)

    @property
    def digest(self) -> str:
        """SHA-256 of library, configuration and the weights' index, which holds the shards' own digests."""
        digest = hashlib.sha256()
        for path in (self.library, self.path / INDEX, self.path / CHAT_CONFIG):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def _validate(self, where: Path) -> None:
        self._check_cache(where, "cache.shape", self.cache_shape, "cache.dtype", self.cache_dtype)
        if self.draft is not None:
            self._check_cache(where, "draft.cache_shape", self.draft.cache_shape, "draft.cache_dtype",
                              self.draft.cache_dtype)
        if self.max_tree_nodes > MASK_BITS:
            raise UserError(f"{where}: field 'max_tree_nodes': expected at most {MASK_BITS}, "
                            f"found {self.max_tree_nodes}")

    def _check_cache(self, where: Path, shape_field: str, shape: tuple[int, ...], dtype_field: str,
                     dtype: str) -> None:
        if len(shape) != 3 or 0 in shape:
            raise UserError(f"{where}: field {shape_field!r}: expected [slots, kv_heads, width], found {list(shape)}")
        if shape[0] < self.context_window_size:
            raise UserError(f"{where}: field {shape_field!r}: {shape[0]} slots cannot hold the context "
                            f"window of {self.context_window_size} tokens")
        if dtype not in ("float32", "float16"):
            raise UserError(f"{where}: field {dtype_field!r}: expected float32 or float16, found {dtype!r}")
