"""The steps of the check that concern the draft model: what MLC's engine does with it, held against our runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..engine import Engine
from ..tvm_runtime import model_library
from .eagle import EmulatedEagle
from .engine import EmulatedEngine
from .functions import DRAFT_FUNCTIONS, FUNCTIONS
from .steps import Step, Wrong, attempt

_SEQUENCES = (2, 3)  # that the steps before have not left in a cache
_LENGTH = 3  # guesses at a time
_UNKNOWN = -3e38  # about the lowest float32, which TVM writes with six digits into OpenCL's source


class DraftWalk:
    """``close(found, expected, what)`` compares as the steps before do; ``prompt`` and ``other``: two texts; ``text``:
    what our runtime says, the prompt in front; ``gaps``: how far apart its two largest logits are behind each token,
    ``tied`` below which another choice is none of the engine's faults."""

    def __init__(self, engine: Engine, mlc: EmulatedEngine, close: Callable[..., str], prompt: list[int],
                 other: list[int], text: list[int], gaps: np.ndarray, tied: float) -> None:
        self._engine, self._mlc, self._close = engine, mlc, close
        self._prompt, self._other, self._text, self._gaps, self._tied = prompt, other, text, gaps, tied
        self._draft: EmulatedEngine | None = None
        self._described = engine.artifact.chat_config["blockffn"]["mlc_draft"]
        self._folder = engine.artifact.path / self._described["folder"]

    def steps(self, files: Callable[[Path], str], metadata: Callable[[EmulatedEngine], str],
              create: Callable[[EmulatedEngine], str]) -> Iterator[Step]:
        """In order; none behind one without which they are impossible. ``files``, ``metadata`` and ``create``: the
        steps for any model."""
        for name, step in (("draft files", lambda: files(self._folder)), ("load draft", self._load),
                           ("draft functions", self._functions), ("draft metadata", lambda: metadata(self._draft)),
                           ("draft cache", lambda: create(self._draft))):
            result = attempt(name, step)
            yield result
            if not result.ok:
                return
        yield attempt("draft states", self._states)
        yield attempt("draft in batches", self._batches)
        yield attempt("speculate", self._speculate)

    def _load(self) -> str:
        self._library = model_library(self._engine.artifact.path / self._described["library"])
        self._draft = EmulatedEngine(self._library.module, self._folder, *self._engine.device.codes[0])
        return f"{len(self._draft.metadata['params'])} weights by name"

    def _functions(self) -> str:
        missing = [name for name in DRAFT_FUNCTIONS if not self._draft.has(name)]
        if missing:
            raise Wrong(f"missing: {', '.join(missing)}")
        return f"{sum(map(self._draft.has, FUNCTIONS))} of those of a model"

    def _states(self) -> str:
        """States and logits behind every pair of the prompt, against our own runtime's draft."""
        library, ids, (sequence, _) = self._engine.library, self._prompt[1:], _SEQUENCES
        before = self._hidden(sequence, self._prompt)[:-1]
        rows = np.arange(len(ids), dtype=np.int32)
        ours = library.draft(np.array(ids, np.int32), before, rows, rows + 1, np.zeros((len(ids), 2), np.int32), rows,
                             0, 0, library.new_draft_caches())
        self._draft.add(sequence)
        hidden = self._draft.hidden(sequence, ids, before)
        self._draft.remove(sequence)
        self._close(hidden, ours.hidden, "states")
        logits = self._draft.logits(hidden)
        known = logits > _UNKNOWN
        expected = np.array([ours.logits[row] for row in rows])
        if not (known == known[0]).all() or known[0].sum() != expected.shape[1]:
            raise Wrong(f"the head knows {known[0].sum()} tokens, our runtime's {expected.shape[1]}")
        self._close(np.sort(logits[:, known[0]]), np.sort(expected))
        likely = -np.sort(-expected)[:, :ours.tokens.shape[1]]
        return self._close(np.take_along_axis(logits, ours.tokens.astype(np.int64), axis=1), likely)

    def _batches(self) -> str:
        """Two sequences together, as each by itself."""
        texts = dict(zip(_SEQUENCES, (self._prompt, self._other)))
        hidden = {sequence: self._hidden(sequence, text) for sequence, text in texts.items()}
        alone, steps, draft = [], [], self._draft
        for sequence, text in texts.items():
            draft.add(sequence)
            alone.append(draft.hidden(sequence, text[1:-1], hidden[sequence][:-2]))
            steps.append(draft.hidden(sequence, text[-1:], hidden[sequence][-2:-1], kind="decode"))
            draft.remove(sequence)
            draft.add(sequence)
        together = draft.batch_hidden({sequence: text[1:-1] for sequence, text in texts.items()},
                                      np.concatenate([hidden[sequence][:-2] for sequence in texts]), decode=False)
        after = draft.batch_hidden({sequence: text[-1:] for sequence, text in texts.items()},
                                   np.concatenate([hidden[sequence][-2:-1] for sequence in texts]), decode=True)
        for sequence in texts:
            draft.remove(sequence)
        return self._close(np.concatenate([together, after]), np.concatenate([*alone, *steps]), "states")

    def _speculate(self) -> str:
        eagle = EmulatedEagle(self._mlc, self._draft, _SEQUENCES[0])
        count = len(self._text) - len(self._prompt)
        found = eagle.generate(self._prompt, count, _LENGTH)
        expected = self._text[len(self._prompt):]
        at = next((i for i in range(count) if found[i] != expected[i]), count)
        if at < count and self._gaps[len(self._prompt) - 1 + at] > self._tied:
            raise Wrong(f"token {at}: another one than our runtime's greedy text has")
        return f"{at} greedy tokens as ours, {eagle.accepted} of {eagle.drafted} guesses right"

    def _hidden(self, sequence: int, text: list[int]) -> np.ndarray:
        """The target's states behind a text's tokens."""
        self._mlc.add(sequence)
        hidden = self._mlc.hidden(sequence, text)
        self._mlc.remove(sequence)
        return hidden
