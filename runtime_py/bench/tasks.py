"""What is measured: prompts, decoding and chunks behind cached tokens, in several modes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from .passes import DENSE, SPARSE

PROMPT, GENERATE, CHUNK = "pp", "tg", "chunk"
SPECULATIVE = "speculative"
MODES = (DENSE, SPARSE, SPECULATIVE)


@dataclass(frozen=True)
class Task:
    """``tokens`` tokens behind ``depth`` cached ones. ``kind`` PROMPT: read in as few passes as possible, logits of the
    last token; GENERATE: one after the other, or as a draft allows; CHUNK: in one pass, logits of each token."""

    kind: str
    tokens: int
    depth: int
    mode: str

    @property
    def name(self) -> str:
        return f"{self.kind}{self.tokens} @ d{self.depth}"


def make_tasks(prompts: Collection[int], generated: Collection[int], chunks: Collection[int], depths: Collection[int],
               modes: Collection[str]) -> list[Task]:
    """All combinations, kind by kind; a number of 0 leaves a kind out, and drafts are for GENERATE alone."""
    kinds = {PROMPT: prompts, GENERATE: generated, CHUNK: chunks}
    return [Task(kind, tokens, depth, mode) for depth in depths for kind, numbers in kinds.items()
            for tokens in numbers if tokens for mode in modes if kind == GENERATE or mode != SPECULATIVE]


def check_tasks(tasks: Collection[Task], artifact: Artifact) -> None:
    """Raise UserError for the first task that the artifact has no room for."""
    for task in tasks:
        for problem in _problems(task, artifact):
            raise UserError(f"{artifact.path}: {task.name}: {problem}")


def _problems(task: Task, artifact: Artifact) -> Iterator[str]:
    window, chunk = artifact.context_window_size, artifact.prefill_chunk_size
    needed = task.depth + task.tokens + (task.kind == GENERATE)  # the token that decoding begins with
    if needed > window:
        yield (f"takes {needed} tokens, the context window has {window}; choose a smaller --depth or fewer tokens, "
               "or rebuild the artifact with a larger --context-window")
    if task.kind == CHUNK and task.tokens > chunk:
        yield (f"one pass takes at most {chunk} tokens; choose smaller --chunks, or rebuild the artifact with a larger "
               "--prefill-chunk")
