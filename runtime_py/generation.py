"""One running generation: an iterator of tokens that knows its text and its cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from blockffn_mlc.errors import UserError

from .sampling import Sampler, Sampling
from .session import Session
from .speculation import PLAIN, FixedShape, ShapeController, advance
from .stats import Stats, Stopwatch
from .tokenizer import StreamDecoder

DEFAULT_MAX_TOKENS = 256


def check_limits(session: Session, prompt: Sequence[int], max_tokens: int | None) -> None:
    """Raises UserError when the prompt and ``max_tokens`` (None: one token) do not fit into the context window."""
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens: expected a positive integer, found {max_tokens}")
    session.check_room(len(prompt) + (max_tokens or 1), "tokens (prompt plus those to generate)")


class Token(NamedTuple):
    """A generated token and the text it completes (empty while a character is incomplete)."""

    id: int
    text: str


class Generation:
    """Iterate to generate; ``ids``, ``text``, ``stats`` and ``finish_reason`` grow meanwhile. ``draft``: the name of
    the session's drafter, or "none".

    Stops after a token of ``stop_ids`` (part of ``ids``, not of ``text``; finish_reason "eos") or after
    ``max_tokens`` ("length"). The session then holds everything but the last token; one that is broken off may hold
    tokens that were accepted but not asked for.
    """

    def __init__(self, session: Session, prompt: Sequence[int], sampling: Sampling, *, stop_ids: Collection[int],
                 max_tokens: int | None = None, decoder: StreamDecoder | None = None,
                 controller: ShapeController | None = None) -> None:
        """``max_tokens`` None: up to 256, as the window allows. ``controller``: decides what the session's drafter
        drafts; None: plain decoding. The tokens are the same either way. Raises UserError before any work when the
        prompt and ``max_tokens`` do not fit into the context window."""
        check_limits(session, prompt, max_tokens)
        self._session = session
        self._stop_ids = frozenset(stop_ids)
        self._decoder = decoder
        self._controller = controller or FixedShape(PLAIN)
        self.max_tokens = max_tokens or min(DEFAULT_MAX_TOKENS, session.room - len(prompt))
        self.sampling = sampling
        self.draft = session.drafter.name if session.drafter else "none"
        self.ids: list[int] = []
        self._pieces: list[str] = []
        self.finish_reason: str | None = None
        self.stats = Stats(prompt_tokens=len(prompt))
        self._tokens = self._run(list(prompt))

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def figures(self) -> str:
        """What it cost, in words."""
        idle = self.draft != "none" and self.stats.passes and not self.stats.drafted
        return f"{self.stats}" + "\nno drafts: by what passes cost here they would not have paid" * bool(idle)

    def close(self) -> None:
        """End it here: nothing more comes, and the session is left alone."""
        self._tokens.close()

    def _run(self, prompt: list[int]) -> Iterator[Token]:
        sample, clock = Sampler(self.sampling, self._session.accept_kernel), Stopwatch()
        take, stats, ids = self._take, self.stats, self.ids
        self._controller.restart()
        logits = self._session.extend(prompt)
        self._session.wait()
        stats.prefill_seconds = clock.seconds
        token = take(sample(logits, self._session.history))
        stats.time_to_first_token = clock.seconds
        yield token
        while self.finish_reason is None:
            start = perf_counter()
            for token_id in advance(self._session, ids[-1], self.max_tokens - len(ids), sample, self._stop_ids,
                                    self._controller, stats):
                token = take(token_id)
                stats.decode_seconds += perf_counter() - start
                yield token
                start = perf_counter()  # the time between tokens belongs to who asks for them

    def _take(self, token_id: int) -> Token:
        self.ids.append(token_id)
        self.stats.generated_tokens += 1
        stops = token_id in self._stop_ids
        text = self._decoder.push(token_id) if self._decoder and not stops else ""
        if stops or len(self.ids) == self.max_tokens:
            self.finish_reason = "eos" if stops else "length"
            text += self._decoder.finish() if self._decoder else ""
        self._pieces.append(text)
        return tuple.__new__(Token, (token_id, text))  # Token(...) is a call more, for every token
