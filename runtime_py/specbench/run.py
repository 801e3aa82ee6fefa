"""Asking the questions: every mode answers a question before the next one comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..conversation import Conversation, PromptTooLong
from ..engine import Engine
from ..sampling import GREEDY
from ..stats import Stopwatch
from .answers import Answer, AnswerStore, Skipped
from .questions import Question

_WARM_UP_TOKENS = 32


@dataclass(frozen=True)
class Mode:
    """A way to decode. ``dense``: every expert is computed; ``draft``: where candidates come from; ``paper``: the row
    of the paper's Table 6 that it corresponds to, with trees of 32 nodes where it drafts."""

    dense: bool
    draft: str
    paper: str

    @property
    def drafts(self) -> bool:
        return self.draft != "none"

    def paper_row(self, tree_size: int | None) -> str:
        """``paper``, or what is different from it with trees of another size."""
        if not self.paper or not self.drafts or tree_size == 32:
            return self.paper
        trees = f"trees of {tree_size} nodes" if tree_size else "tree sizes chosen while decoding"
        return f"{self.paper.removesuffix(' (32-Tok)')}, but {trees}"


MODES = {
    "dense": Mode(True, "none", "Baseline AR"),
    "dense+eagle": Mode(True, "eagle", "EAGLE-2"),
    "sparse": Mode(False, "none", "Ours (1-Tok)"),
    "sparse+eagle": Mode(False, "eagle", "Ours (32-Tok)"),
    "sparse+ngram": Mode(False, "ngram", ""),
}
BASELINE = "dense"


def answer_questions(engine: Engine, questions: Sequence[Question], modes: Sequence[str], store: AnswerStore,
                     max_tokens: int, tree_size: int | None, progress: Callable[[int, str], None]) -> None:
    """Ask what ``store`` does not hold yet, greedily, at most ``max_tokens`` a turn. Modes take turns at being first.
    ``progress`` gets the number of questions done and what comes next. Raises UserError when the artifact has no
    tokenizer."""
    warm = False
    for number, question in enumerate(questions):
        first = number % len(modes)
        try:
            for mode in (*modes[first:], *modes[:first]):
                if question.id in store.skipped or question.id in store.answers[mode]:
                    continue
                if not warm:
                    progress(number, "warm-up")
                    for name in modes:
                        _answer(engine, question, MODES[name], min(max_tokens, _WARM_UP_TOKENS), tree_size)
                    warm = True
                progress(number, mode)
                store.add(mode, _answer(engine, question, MODES[mode], max_tokens, tree_size))
        except _TooLong as error:
            store.skip(error.skipped)
        progress(number + 1, "")


class _TooLong(Exception):
    def __init__(self, skipped: Skipped) -> None:
        self.skipped = skipped


def _answer(engine: Engine, question: Question, mode: Mode, max_tokens: int, tree_size: int | None) -> Answer:
    """All turns of a question, as one conversation. Raises _TooLong when one of them leaves no room for an answer."""
    conversation = Conversation(engine, mode.draft, tree_size if mode.drafts else None, dense=mode.dense)
    answer = Answer(question.id, question.category, *([] for _ in range(8)))
    for number, text in enumerate(question.turns, 1):
        try:
            generation = conversation.ask(text, GREEDY, max_tokens)
        except PromptTooLong as error:
            raise _TooLong(Skipped(question.id, question.category, number, error.tokens,
                                   engine.artifact.context_window_size)) from None
        clock = Stopwatch()
        next(generation)
        answer.prefill_time.append(clock.seconds)
        for _ in generation:
            pass
        answer.wall_time.append(clock.seconds)
        cut = generation.finish_reason == "length" and generation.max_tokens < max_tokens
        answer.finish_reasons.append("window" if cut else generation.finish_reason)
        answer.turns.append(generation.text)
        answer.new_tokens.append(len(generation.ids))
        answer.decoding_steps.append(generation.stats.passes)
        answer.accept_lengths.extend(generation.stats.accept_lengths)
        answer.union_shares.extend(round(share, 4) for share in generation.stats.union_shares)
    return answer
