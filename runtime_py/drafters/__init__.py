"""Where drafted tokens come from. Drafts change how fast the model generates, never what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..tree import Tree, TreeShape


class Drafter(Protocol):
    """Proposes continuations of one session's tokens. It is told of every change of the session's cache, in order and
    in plain decoding as well: ``extend`` and ``rollback`` should cost little and leave the work to ``draft``, which is
    not called for passes that do not speculate."""

    name: str

    def extend(self, tokens: Sequence[int], hidden: np.ndarray | None) -> None:
        """The session's cache now also holds ``tokens``: a chunk of the prompt, a decoded token or an accepted path.
        ``hidden`` float32 [len(tokens), H]: the model's state after its final norm for each of them; None where the
        artifact has no draft model."""

    def draft(self, root: int, shape: TreeShape) -> Tree:
        """Continuations of ``root``, the token chosen last, which the cache does not hold yet. The tree may be
        smaller than ``shape`` asks, never larger or deeper; the root alone where there is nothing to propose."""

    def rollback(self, length: int) -> None:
        """The session forgot its tokens from position ``length`` on."""
