"""The measuring process for kernels: one artifact, one number of threads (TVM fixes it once per process)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..devices import kind_of_target
from .bandwidth import ReadBandwidth
from .passes import DENSE, FUNCTIONS, SPARSE, Case, Passes, Setup, check_lengths
from .replay import Replay
from .routing import scores_with_union
from .work import Routing, WorkCounter

__all__ = ["DENSE", "SPARSE", "Case", "KernelSample", "Sample", "Setup", "Worker", "measure", "measure_bandwidth",
           "prepare"]


@dataclass
class KernelSample:
    """One kernel in one pass: all its calls together. ``experts``: whether it computes experts."""

    calls: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    operations: int = 0
    experts: bool = False


@dataclass(frozen=True)
class Sample:
    """One pass. ``whole``: seconds of the same pass as one call of the library (None where unions are forced);
    ``active``, ``union``: shares of the experts, means over tokens and layers."""

    kernels: dict[str, KernelSample]
    whole: float | None
    active: float
    union: float


def prepare(setup: Setup, tokens: int) -> dict[str, Any]:
    """Load everything for passes of at most ``tokens`` tokens. Returns what a report says of the artifact, and the
    source of every kernel. Raises UserError for what the artifact cannot do."""
    artifact = Artifact.open(setup.artifact)
    if kind_of_target(artifact.target) != "cpu":
        raise UserError(f"{artifact.path}: built for target {artifact.target!r}; kernels are timed on the processor "
                        "alone; build the artifact with --target cpu, or leave --kernels out to time whole passes")
    check_lengths(artifact, setup.depth, tokens)
    worker = _worker(setup)
    return {**worker.facts(), "origins": worker.description.origins}


def measure_bandwidth(setup: Setup) -> float:
    """GB/s of one reading of memory."""
    return _worker(setup).bandwidth.measure()


def measure(setup: Setup, case: Case, turn: int) -> Sample:
    """Time one pass; ``turn`` chooses its tokens and the forced unions."""
    return _worker(setup).measure(case, turn)


@cache
def _worker(setup: Setup) -> Worker:
    return Worker(setup)


class Worker(Passes):
    """Beside what ``Passes`` holds, one replay per kind of pass."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.bandwidth = ReadBandwidth(setup.threads)
        self._replays: dict[tuple[int, str], Replay] = {}

    def measure(self, case: Case, turn: int) -> Sample:
        artifact, calls = self.engine.artifact, self.description.passes[FUNCTIONS[case.kind]]
        replay = self._replay(case.tokens, case.kind)
        ids = self.ids(self.depth + turn * case.tokens, case.tokens)
        forced = None if case.union is None else list(self._forced(case, turn))
        whole = self.run(ids, case.kind)[0] if forced is None and turn % 2 else None  # first or last, in turn
        seconds = replay.run(ids, forced)
        if forced is None and whole is None:
            whole = self.run(ids, case.kind)[0]
        scores = replay.scores
        counter = WorkCounter(artifact, self.description, calls, replay.sizes, self.depth)
        work = counter.count([Routing.of(layer, case.kind == DENSE) for layer in scores])
        kernels: dict[str, KernelSample] = {}
        for call, time_taken, done in zip(calls.calls, seconds, work):
            kernel = kernels.setdefault(call.kernel, KernelSample(experts=counter.reads_experts(call)))
            kernel.calls += 1
            kernel.seconds += time_taken
            kernel.nbytes += done.nbytes
            kernel.operations += done.operations
        used = np.stack(scores) != 0
        return Sample(kernels, whole, float(used.mean()), float(used.any(axis=1).mean()))

    def _replay(self, tokens: int, kind: str) -> Replay:
        if (tokens, kind) not in self._replays:
            self._replays[tokens, kind] = Replay(self.engine.library, self.description.passes[FUNCTIONS[kind]],
                                                 tokens, self.rows(tokens), self.depth, self.caches)
        return self._replays[tokens, kind]

    def _forced(self, case: Case, turn: int) -> Iterator[np.ndarray]:
        config = self.engine.artifact.config
        rng = np.random.default_rng([turn, case.tokens])
        for _ in range(config.num_hidden_layers):
            yield scores_with_union(rng, case.tokens, config.num_experts, case.union)
