"""Where drafted tokens come from. Drafts change how fast the model generates, never what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from blockffn_mlc.errors import UserError

from ..tree import Tree, TreeShape

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..library import Library, States

DRAFTS = ("none", "ngram", "eagle", "auto")


class Drafter(Protocol):
    """Proposes continuations of one session's tokens. It is told of every change of the session's cache, in order and
    in plain decoding as well: ``extend`` and ``rollback`` should cost little and leave the work to ``draft``, which is
    not called for passes that do not speculate."""

    name: str  # one that no other drafter has: what its trees cost is kept by it
    by_level: bool  # whether every level of a tree costs about as much, as with a draft model; else drafts are cheap

    def extend(self, tokens: Sequence[int], hidden: States | None) -> None:
        """The session's cache now also holds ``tokens``: a chunk of the prompt, a decoded token or an accepted path.
        ``hidden`` float32 [len(tokens), H]: the model's state after its final norm for each of them, an array to numpy,
        which fetches it from the device; None where the artifact has no draft model."""

    def draft(self, root: int, shape: TreeShape) -> Tree:
        """Continuations of ``root``, the token chosen last, which the cache does not hold yet. The tree may be
        smaller than ``shape`` asks, never larger or deeper; the root alone where there is nothing to propose."""

    def rollback(self, length: int) -> None:
        """The session forgot its tokens from position ``length`` on."""


def make_drafter(draft: str | Drafter, artifact: Artifact, library: Library) -> Drafter | None:
    """The drafter of a new session by name, None for "none"; a drafter is returned as it is. "auto": the artifact's
    draft model where it has one, else lookup in the text itself. Raises UserError."""
    if not isinstance(draft, str):
        return draft
    if draft not in DRAFTS:
        raise UserError(f"draft: expected one of {', '.join(DRAFTS)}, found {draft!r}")
    if draft == "none":
        return None
    model = artifact.draft
    if draft == "eagle" and model is None:
        raise UserError(f"{artifact.path}: has no draft model, which draft 'eagle' needs; use 'ngram', or rebuild the "
                        "artifact with --draft DIR")
    if draft == "ngram" or model is None:
        from .ngram import NgramDrafter
        return NgramDrafter()
    from .eagle import EagleDrafter
    return EagleDrafter(artifact, library)
