"""What the passes of a task had to do, from what its routers chose."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..artifact import Artifact
from ..stats import Stats
from .calls import Description
from .passes import DENSE, FUNCTIONS, SPARSE
from .tasks import CHUNK, Task
from .work import Routing, WorkCounter


@dataclass(frozen=True)
class Sample:
    """One run of a task. ``seconds`` until the device is done; ``passes`` of the model; ``weight_bytes`` that they
    read; ``operations``: 2 per multiply-add that is needed (None where drafts decide); ``active``, ``union``: shares of
    the experts that a token uses and that a pass uses, means; ``accept_length``: new tokens per pass of speculative
    decoding, else None. What other engines do not tell is None."""

    seconds: float
    passes: int
    weight_bytes: int | None
    operations: int | None
    active: float
    union: float | None
    accept_length: float | None = None


class Accounts:
    """Makes samples of an artifact's tasks."""

    def __init__(self, artifact: Artifact, description: Description) -> None:
        self._artifact, self._description = artifact, description

    def rows(self, task: Task, tokens: int) -> int:
        """Of logits, in a pass over so many tokens of a task."""
        return tokens if task.kind == CHUNK and tokens <= self._artifact.max_tree_nodes else 1

    def reading(self, task: Task, seconds: float, scores: Sequence[Sequence[np.ndarray]]) -> Sample:
        """Of a prompt or a chunk; ``scores``: of every pass, per layer float32 [n, E]."""
        past, weights, operations, used = task.depth, 0, 0, []
        for layers in scores:
            n = len(layers[0])
            counter = self._counter(task, n, past)
            routings = [Routing.of(layer, task.mode == DENSE) for layer in layers]
            weights += counter.weights_read(routings)
            operations += sum(work.operations for work in counter.count(routings))
            used.append(np.stack(layers) != 0)
            past += n
        return Sample(seconds, len(scores), weights, operations, float(np.concatenate(used, axis=1).mean()),
                      statistics.mean(float(part.any(axis=1).mean()) for part in used))

    def decoding(self, task: Task, seconds: float, used: np.ndarray) -> Sample:
        """Of a pass per token; ``used``: bool [L, tokens, E], the experts that each uses."""
        tokens, experts = used.shape[1:]
        counter = self._counter(task, 1, task.depth + tokens // 2)
        counts = [float(experts if task.mode == DENSE else layer.sum(axis=1).mean()) for layer in used]
        routings = [Routing(count, count) for count in counts]
        operations = sum(work.operations for work in counter.count(routings))
        active = float(used.mean())
        return Sample(seconds, tokens, tokens * counter.weights_read(routings), tokens * operations, active, active)

    def speculation(self, task: Task, seconds: float, used: np.ndarray, stats: Stats) -> Sample:
        """Of decoding with drafts; passes without any use what their token uses."""
        active, trees = float(used.mean()), stats.union_shares
        union = (sum(trees) + (stats.passes - len(trees)) * active) / stats.passes
        routings = [Routing(union * used.shape[2], 0)] * len(used)
        weights = stats.passes * self._counter(task, 1, task.depth).weights_read(routings)
        return Sample(seconds, stats.passes, weights, None, active, union, stats.mean_accept_length)

    def _counter(self, task: Task, n: int, past: int) -> WorkCounter:
        calls = self._description.passes[FUNCTIONS[DENSE if task.mode == DENSE else SPARSE]]
        return WorkCounter(self._artifact, self._description, calls, {"n": n, "m": self.rows(task, n)}, past)
