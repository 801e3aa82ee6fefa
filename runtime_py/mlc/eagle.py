"""What MLC's engine does with a target and its EAGLE draft, for one sequence at temperature 0 (its
EagleNewRequestPrefill, EagleBatchDraft and EagleBatchVerify)."""

from __future__ import annotations

from collections.abc import Sequence

from .engine import EmulatedEngine


class EmulatedEagle:
    """Two loaded models with a cache each. The draft's row i holds token i + 1 and the state before it, the target's
    of token i."""

    def __init__(self, target: EmulatedEngine, draft: EmulatedEngine, sequence: int) -> None:
        """``sequence``: one that neither cache has."""
        self.target, self.draft, self._sequence = target, draft, sequence
        self.drafted = self.accepted = 0

    def generate(self, prompt: Sequence[int], count: int, length: int) -> list[int]:
        """``count`` tokens or a few more, drafting ``length`` at a time. Afterwards the sequence is gone."""
        sequence, target, draft = self._sequence, self.target, self.draft
        for model in (target, draft):
            model.add(sequence)
        hidden = target.hidden(sequence, prompt)
        text = [int(target.logits(hidden[-1:]).argmax())]
        state = draft.hidden(sequence, [*prompt[1:], *text], hidden)[-1:]
        while len(text) < count:
            guesses = [int(draft.logits(state).argmax())]
            while len(guesses) < length:
                state = draft.hidden(sequence, guesses[-1:], state, kind="decode")
                guesses.append(int(draft.logits(state).argmax()))
            tokens = [text[-1], *guesses]
            hidden = target.hidden(sequence, tokens, kind="batch_verify", parents=range(-1, length))
            chosen = target.logits(hidden).argmax(axis=1).tolist()
            right = next((i for i, guess in enumerate(guesses) if guess != chosen[i]), length)
            target.commit(sequence, list(range(right + 1)))
            text += chosen[:right + 1]
            self.drafted, self.accepted = self.drafted + length, self.accepted + right
            if right < length:
                draft.pop(sequence, length - 1 - right)
            else:  # the last guess is not in the draft's cache yet
                draft.hidden(sequence, guesses[-1:], hidden[-2:-1], kind="decode")
            state = draft.hidden(sequence, text[-1:], hidden[right:right + 1], kind="decode")
        for model in (target, draft):
            model.remove(sequence)
        return text
