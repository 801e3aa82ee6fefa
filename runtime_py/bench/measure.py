"""The measuring process: one artifact on one device with one number of threads (TVM fixes it once per process)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..drafters import Drafter
from ..drafters.scripted import ScriptedDrafter, accuracy_for
from ..engine import Engine
from ..sampling import GREEDY, Sampler
from ..session import Session
from ..speculation import PLAIN, FixedShape, ShapeController, advance
from ..stats import Stats, Stopwatch, peak_memory
from .accounting import Accounts, Sample
from .arithmetic import multiply_add_rate
from .bandwidth import read_bandwidth
from .calls import Description
from .identity import artifact_facts, device_facts
from .machine import busy_share
from .passes import DENSE, SPARSE
from .tasks import GENERATE, SPECULATIVE, Task
from .text import FollowText, Text

SCRIPTED = "scripted"
WHOLE, CALLS = "test", "calls"  # what is timed: a test from begin to end, or the library's functions alone, added up
PAPER_ACCEPT_LENGTH = 2.66  # mean of BlockFFN's table 6
_NO_STOP: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Setup:
    """What a measuring process is made for. ``threads`` None: one per physical core; ``device`` None: what the
    artifact was built for. ``text``: a file to feed (None: see ``Text.of``). ``draft``: where speculative decoding's
    drafts come from, "auto": see ``_drafter``; ``accept_length``: of scripted ones; ``tree_size`` None: as it pays."""

    artifact: str
    threads: int | None
    device: str | None = None
    text: str | None = None
    draft: str = "auto"
    accept_length: float = PAPER_ACCEPT_LENGTH
    tree_size: int | None = None

    def __str__(self) -> str:
        return f"{self.artifact} for {self.threads or 'all'} thread(s)"


def surroundings(setup: Setup) -> dict[str, Any]:
    """The machine before anything runs there, and what of a test is timed."""
    return {"processors": os.cpu_count(), "busy_before": busy_share(), "timed": WHOLE}


def prepare(setup: Setup, tasks: Sequence[Task]) -> dict[str, Any]:
    """Load everything for ``tasks``. Returns what a record says of artifact, device and loading. Raises UserError for
    what the artifact cannot do."""
    return _subject(setup).prepare(tasks)


def measure(setup: Setup, task: Task, turn: int) -> Sample:
    """Run a task; ``turn`` chooses its tokens, but those of decoding are always the same."""
    return _subject(setup).measure(task, turn)


def conclude(setup: Setup) -> dict[str, Any]:
    """What a record says when all is measured: the process's largest resident memory so far, and the roofs."""
    return {"peak_memory_bytes": peak_memory()} | _subject(setup).roofs()


@cache
def _subject(setup: Setup) -> Subject:
    return Subject(setup)


class Subject:
    """The engine, and a session for every depth, with a drafter for speculative decoding and without for the rest."""

    def __init__(self, setup: Setup, engine: Engine | None = None) -> None:
        """``engine``: None makes one, as ``setup`` says."""
        self._setup = setup
        self.engine = engine or Engine.load(setup.artifact, setup.threads, device=setup.device)
        self._description = Description.load(self.engine.artifact.path)
        self._accounts = Accounts(self.engine.artifact, self._description)
        self._text = Text.of(self.engine.artifact) if setup.text is None else Text.read(setup.text, self.engine)
        self._sessions: dict[tuple[int, bool], Session] = {}
        self._continuations: dict[tuple[int, int], list[int]] = {}
        self._routers: dict[tuple[int, int], np.ndarray] = {}

    def prepare(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """See the function of this name."""
        engine, first = self.engine, Stopwatch()
        engine.session().step(int(self._text.ids[0]))
        engine.library.wait()
        facts = artifact_facts(engine.artifact) | device_facts(engine.device) | {
            "threads": engine.threads, "text": self._text.name, "load_s": engine.load_seconds,
            "first_pass_s": first.seconds, "draft": None}
        for task in tasks:
            session = self._session(task)
            if task.mode == SPECULATIVE:
                self._controller(session.drafter)  # measures what trees cost
                facts["draft"] = session.drafter.name
        return facts

    def measure(self, task: Task, turn: int) -> Sample:
        """See the function of this name."""
        session = self._session(task)
        session.dense = task.mode == DENSE
        sample = self._decode(session, task) if task.kind == GENERATE else self._read(session, task, turn)
        session.rollback(task.depth)
        return sample

    def roofs(self) -> dict[str, float | None]:
        """What bounds every pass, as a record says it: how fast the processor's memory reads (not another device's),
        and how fast the device multiplies and adds."""
        engine = self.engine
        return {"roof_gb_per_s": None if engine.device.copies else read_bandwidth(engine.threads),
                "roof_gop_per_s": multiply_add_rate(engine, self._description)}

    def _read(self, session: Session, task: Task, turn: int) -> Sample:
        """A prompt or a chunk."""
        every = self._accounts.rows(task, task.tokens) > 1
        ids = self._text.part(task.depth + turn * task.tokens, task.tokens).tolist()
        session.wait()
        with self.engine.device.timed() as lap:
            scores = [output.layer_scores for output in session.stream(ids, all_logits=every)]
            session.wait()
        return self._accounts.reading(task, lap.seconds, [list(layers) for layers in scores])

    def _decode(self, session: Session, task: Task) -> Sample:
        """Tokens one after the other, or as the session's drafter has it."""
        root, *script = self._continuation(task)
        used = self._used(task)
        drafts = task.mode == SPECULATIVE
        controller = self._controller(session.drafter) if drafts else FixedShape(PLAIN)
        follow, stats = FollowText(script), Stats()
        session.wait()
        with self.engine.device.timed() as lap:
            while stats.generated_tokens < task.tokens:
                new = advance(session, root, task.tokens - stats.generated_tokens, follow, _NO_STOP, controller, stats)
                stats.generated_tokens += len(new)
                root = new[-1]
            session.wait()
        if drafts:
            return self._accounts.speculation(task, lap.seconds, used, stats)
        return self._accounts.decoding(task, lap.seconds, used)

    def _session(self, task: Task) -> Session:
        """With ``task.depth`` cached tokens."""
        key = task.depth, task.mode == SPECULATIVE
        if key not in self._sessions:
            drafter = self._drafter(task) if task.mode == SPECULATIVE else None
            session = self._sessions[key] = self.engine.session("none" if drafter is None else drafter)
            if task.depth:
                session.extend(self._text.part(0, task.depth).tolist())
        return self._sessions[key]

    def _drafter(self, task: Task) -> Drafter:
        """For "auto" the artifact's draft model; without one a script, where it brings its text itself, since its
        weights are random then; else lookup in the text."""
        draft, artifact = self._setup.draft, self.engine.artifact
        if draft == "auto":
            random = self._setup.text is None and self._text.continued
            draft = "eagle" if artifact.draft else SCRIPTED if random else "ngram"
        if draft != SCRIPTED:
            return self.engine.drafting(draft, 1)[0]
        script = self._text.part(0, task.depth).tolist() + self._continuation(task)
        try:
            accuracy = accuracy_for(self._setup.accept_length, (self._setup.tree_size or 64) - 1)
        except ValueError as error:
            raise UserError(f"--accept-length: {error}") from None
        return ScriptedDrafter(script, accuracy, artifact.config.vocab_size)

    def _controller(self, drafter: Drafter) -> ShapeController:
        return self.engine.controller(drafter, self._setup.tree_size)

    def _continuation(self, task: Task) -> list[int]:
        """The token that decoding begins with, and those that it adds."""
        key = task.depth, task.tokens
        if key not in self._continuations:
            if self._text.continued:
                self._continuations[key] = self._text.part(task.depth, task.tokens + 1).tolist()
            else:
                self._continuations[key] = self._most_likely(task)
        return self._continuations[key]

    def _most_likely(self, task: Task) -> list[int]:
        session = self.engine.session()
        sample = Sampler(GREEDY, session.accept_kernel)
        logits = session.extend(self._text.part(0, max(task.depth, 1)).tolist())
        tokens = [sample(logits, session.history)]
        while len(tokens) <= task.tokens:
            tokens.append(sample(session.step(tokens[-1]), session.history))
        return tokens

    def _used(self, task: Task) -> np.ndarray:
        """Which experts the tokens use that decoding feeds when it does not speculate: bool [L, tokens, E]."""
        key = task.depth, task.tokens
        if key not in self._routers:
            session = self._session(Task(task.kind, task.tokens, task.depth, SPARSE))
            session.dense = False
            scores = [np.stack(list(output.layer_scores)) for output in session.stream(self._continuation(task)[:-1])]
            session.rollback(task.depth)
            self._routers[key] = np.concatenate(scores, axis=1) != 0
        return self._routers[key]
