"""The tokens that benchmarks feed."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..engine import Engine
from ..files import read_text
from ..tree import Tree
from ..verification import accept

_RANDOM_TOKENS = 1 << 16


@dataclass(frozen=True)
class Text:
    """``ids`` int32 [any]; ``name`` says what they are. ``continued``: whether decoding goes on with these tokens; else
    with those that the model itself finds most likely."""

    ids: np.ndarray
    name: str
    continued: bool = True

    @classmethod
    def of(cls, artifact: Artifact) -> Text:
        """The artifact's own stream where it has one, else random tokens."""
        if artifact.token_stream is not None:
            return cls(artifact.token_stream, "the artifact's token stream")
        ids = np.random.default_rng(0).integers(0, artifact.config.vocab_size, _RANDOM_TOKENS, np.int32)
        return cls(ids, "random tokens", continued=False)

    @classmethod
    def read(cls, path: str, engine: Engine) -> Text:
        """A UTF-8 text file, in the artifact's tokens. Raises UserError."""
        ids = engine.encode(read_text(path))
        if len(ids) < 2:
            raise UserError(f"{path}: holds no text")
        return cls(np.array(ids, np.int32), f"the text of {path}")

    def part(self, start: int, count: int) -> np.ndarray:
        """Tokens from ``start`` on, int32 [count]; the text begins again where it ends."""
        return np.take(self.ids, range(start, start + count), mode="wrap")


class FollowText:
    """Chooses the tokens of a text, whatever the logits."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, logits: Any, history: Any) -> int:
        return next(self._tokens)

    def accept(self, tree: Tree, logits: Any, history: Any, stop_ids: AbstractSet[int]) -> tuple[list[int], list[int]]:
        return accept(tree, logits, self, history, stop_ids)
