"""One conversation's cache: what it holds, how it grows, how a drafted tree is tried and kept."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from blockffn_mlc.errors import UserError

from .artifact import Artifact
from .devices import Logits, Row
from .drafters import Drafter
from .library import Library, States


@dataclass(frozen=True)
class Output:
    """One forward pass over n tokens: ``logits`` float32 [m, V] of the m rows asked for, the router scores of all n
    tokens, one float32 [n, E] per layer, and, where the artifact has a draft model, ``hidden`` float32 [n, H]: the
    state after the final norm. On a device other than the processor logits and states stay there; to numpy they are
    arrays."""

    logits: np.ndarray | Logits
    layer_scores: Sequence[np.ndarray]
    hidden: States | None = None

    @property
    def router_scores(self) -> np.ndarray:
        """Router scores after the router's norm, float32 [L, n, E]; 0 for inactive experts."""
        return np.stack(self.layer_scores)


class Session:
    """The tokens whose keys and values are cached, in order. Rows beyond ``length`` are never visible,
    so dropping tokens costs nothing. ``drafter``, if any, is told of every change; it starts empty as well.
    ``dense``: every expert is computed, to compare with; it may change between passes. ``accept_kernel``: the library's
    kernel that chooses tokens, if it has one."""

    def __init__(self, artifact: Artifact, library: Library, drafter: Drafter | None = None, *,
                 dense: bool = False) -> None:
        self._artifact = artifact
        self._library = library
        self.dense = dense
        self.accept_kernel = library.accept
        self._caches = library.new_caches()
        self._tree: tuple[list[int], list[int], States | None] | None = None
        self.tokens: list[int] = []
        self.history = array("i")  # the same, as kernels take them
        self.attach(drafter)

    def attach(self, drafter: Drafter | None) -> None:
        """Tell ``drafter`` of every change from now on. Raises ValueError when the session holds tokens already."""
        if self.tokens:
            raise ValueError(f"expected an empty session, which its drafter knows all of, found {self.length} tokens")
        self.drafter = drafter
        if drafter is not None:
            drafter.rollback(0)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def room(self) -> int:
        """Tokens that still fit into the context window."""
        return self._artifact.context_window_size - self.length

    def check_room(self, count: int, what: str = "tokens") -> None:
        """Raises UserError when ``count`` more tokens do not fit into the context window."""
        if count > self.room:
            window = self._artifact.context_window_size
            held = f" beside the {self.length} already there" if self.length else ""
            raise UserError(f"{count} {what} do not fit into the context window of {window} tokens{held}; "
                            "shorten the input, or rebuild the artifact with a larger --context-window")

    def checked(self, ids: Sequence[int]) -> list[int]:
        """``ids`` as a list. Raises UserError when there are none or one is not in the vocabulary."""
        try:
            ids = [operator.index(token) for token in ids]
        except TypeError:
            raise UserError(f"token ids are integers, found {ids!r:.80}") from None
        if not ids:
            raise UserError("no tokens given; expected at least one")
        vocab = self._artifact.config.vocab_size
        for position, token in enumerate(ids):
            if not 0 <= token < vocab:
                raise UserError(f"token {token} at position {position} is not in the vocabulary (0 to {vocab - 1})")
        return ids

    def extend(self, ids: Sequence[int]) -> np.ndarray | Row:
        """Append ``ids`` (at least one), in chunks. Returns the last token's logits, float32 [V].

        Raises UserError before any work when they do not fit or are not tokens of the model.
        """
        for output in self.stream(ids):
            logits = output.logits[-1]
        return logits

    def step(self, token: int) -> np.ndarray | Row:
        """``extend`` by one token that the model chose, with as little work around the pass as possible: raises
        UserError when there is no room for it, but does not check that it is one of the model's."""
        self.check_room(1)
        self._tree = None
        logits, hidden = self._library.step(token, len(self.tokens), self._caches, dense=self.dense)
        self._hold([token], hidden)
        return logits

    def stream(self, ids: Sequence[int], chunk: int | None = None, all_logits: bool = False) -> Iterator[Output]:
        """Append ``ids`` chunk by chunk (``prefill_chunk_size`` tokens by default), one Output per chunk,
        with the logits of every token or of the chunk's last. Checks as ``extend`` does, at once."""
        ids = self.checked(ids)
        self.check_room(len(ids))
        size = min(chunk or self._artifact.prefill_chunk_size, self._artifact.prefill_chunk_size)
        return self._stream(ids, size, all_logits)

    def _stream(self, ids: list[int], size: int, all_logits: bool) -> Iterator[Output]:
        self._tree = None
        for start in range(0, len(ids), size):
            part = ids[start:start + size]
            n, past = len(part), self.length
            steps = np.arange(n, dtype=np.int32)
            output = self._forward(np.array(part, np.int32), past + steps, past + steps + 1,
                                   np.zeros((n, 2), np.int32), steps if all_logits else steps[-1:])
            self._hold(part, output.hidden)
            yield output

    def tree(self, ids: Sequence[int], parents: Sequence[int]) -> Output:
        """Try a token tree after the cached tokens: logits and scores of every node.

        ``parents[i] < i`` is node i's parent, -1 for a child of the last cached token. A node sees the
        cached tokens, its ancestors and itself. The session's length stays: ``commit`` keeps a path, anything
        else drops the tree. Raises UserError when the tree is too large or too deep for the window.
        """
        ids, n = self.checked(ids), len(ids)
        limit = min(self._artifact.max_tree_nodes, self._artifact.prefill_chunk_size)
        if n > limit:
            raise UserError(f"a tree of {n} nodes is larger than the artifact allows ({limit})")
        if len(parents) != n or any(not -1 <= parent < node for node, parent in enumerate(parents)):
            raise ValueError(f"parents must name an earlier node or -1 for each of the {n} nodes, got {list(parents)}")
        past = self.length
        positions, masks = [], []
        for node, parent in enumerate(parents):
            positions.append(positions[parent] + 1 if parent >= 0 else past)
            masks.append((masks[parent] if parent >= 0 else 0) | 1 << node)
        self.check_room(max(positions) + 1 - past, "levels of the token tree")
        if past + n > self._artifact.cache_shape[0]:
            raise UserError(f"a tree of {n} nodes does not fit into the cache of {self._artifact.cache_shape[0]} "
                            f"slots beside {past} tokens")
        self._tree = None
        ancestors = np.array(masks, "<u8").view("<i4").reshape(n, 2)
        rows = np.array([ids, positions, [past] * n, range(n)], np.int32)  # one array: four take longer to make
        output = self._forward(*rows[:3], ancestors, rows[3])
        self._tree = ids, list(parents), output.hidden
        return output

    def commit(self, path: Sequence[int]) -> None:
        """Keep one path of the last tree: ascending nodes, each the parent of the next, from the root on."""
        if self._tree is None:
            raise ValueError("commit needs a tree that was just tried")
        ids, parents, hidden = self._tree
        for parent, node in zip([-1, *path], path):
            if not 0 <= node < len(ids) or parents[node] != parent:
                raise ValueError(f"{list(path)} is no path from the root of the tree")
        if list(path) != list(range(len(path))):
            self._library.commit(np.array(path, np.int32), self.length, self._caches)
        self._hold([ids[node] for node in path], None if hidden is None else hidden[path])
        self._tree = None

    def rollback(self, length: int) -> None:
        """Forget all tokens from position ``length`` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot roll back to {length}: the session holds {self.length} tokens")
        del self.tokens[length:], self.history[length:]
        self._tree = None
        if self.drafter is not None:
            self.drafter.rollback(length)

    def reuse(self, ids: Sequence[int]) -> int:
        """Roll back to the longest prefix shared with ``ids``, leaving at least the last of them to feed.
        Returns the prefix's length."""
        shared = 0
        for held, wanted in zip(self.tokens, ids[:-1]):
            if held != wanted:
                break
            shared += 1
        self.rollback(shared)
        return shared

    def wait(self) -> None:
        """Until every pass before is done, as who reads a clock must."""
        self._library.wait()

    def _hold(self, tokens: list[int], hidden: States | None) -> None:
        if self.drafter is not None:
            self.drafter.extend(tokens, hidden)
        self.history.extend(tokens)
        self.tokens.extend(tokens)  # last: a drafter ahead of its session is put right by the next rollback

    def _forward(self, *inputs: np.ndarray) -> Output:
        """One pass; ``inputs``: ids, positions, visible, ancestors, rows (see ``Library.forward``), int32."""
        return Output(*self._library.forward(*inputs, self.length, self._caches, dense=self.dense))
