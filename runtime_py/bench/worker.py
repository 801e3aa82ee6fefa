"""The measuring process: one artifact, one number of threads (TVM fixes it once per process)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..devices import kind_of_target
from ..engine import Engine
from .bandwidth import ReadBandwidth
from .calls import Description
from .replay import Replay, causal_arguments
from .routing import scores_with_union
from .work import Routing, WorkCounter

SPARSE, DENSE = "sparse", "dense"
_FUNCTIONS = {SPARSE: "forward", DENSE: "forward_dense"}
_RANDOM_TOKENS = 1 << 16


@dataclass(frozen=True)
class Setup:
    """What a worker is made for."""

    artifact: str
    threads: int
    depth: int


@dataclass(frozen=True)
class Case:
    """A pass to time: ``kind`` SPARSE or DENSE; ``union``: share of the experts to force into every layer's union
    (None: as the router chooses)."""

    tokens: int
    kind: str = SPARSE
    union: float | None = None


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
                        "alone, build the artifact with --target cpu")
    for what, needed, limit in (("--tokens", tokens, artifact.prefill_chunk_size),
                                ("--depth and --tokens together", setup.depth + tokens, artifact.context_window_size)):
        if needed > limit:
            raise UserError(f"{what}: {needed} tokens, this artifact takes at most {limit}; choose fewer")
    worker = _worker(setup)
    return {"artifact": artifact.name, "host": artifact.host, "quantization": artifact.chat_config.get("quantization"),
            "weight_bytes": sum(weight.nbytes for weight in worker.engine.artifact.weights.values()),
            "text": worker.text, "origins": worker.description.origins}


def measure_bandwidth(setup: Setup) -> float:
    """GB/s of one reading of memory."""
    return _worker(setup).bandwidth.measure()


def measure(setup: Setup, case: Case, turn: int) -> Sample:
    """Time one pass; ``turn`` chooses its tokens and the forced unions."""
    return _worker(setup).measure(case, turn)


@cache
def _worker(setup: Setup) -> Worker:
    return Worker(setup)


class Worker:
    """Holds the weights, a cache filled with ``depth`` tokens, and one replay per kind of pass."""

    def __init__(self, setup: Setup) -> None:
        self.depth = setup.depth
        self.engine = Engine.load(setup.artifact, setup.threads)
        self.description = Description.load(self.engine.artifact.path)
        self.bandwidth = ReadBandwidth(setup.threads)
        self.caches = self.engine.library.new_caches()
        self.stream, self.text = _token_stream(self.engine.artifact)
        self._replays: dict[tuple[int, str], Replay] = {}
        self._fill()

    def measure(self, case: Case, turn: int) -> Sample:
        artifact, calls = self.engine.artifact, self.description.passes[_FUNCTIONS[case.kind]]
        replay = self._replay(case.tokens, case.kind)
        ids = self._ids(self.depth + turn * case.tokens, case.tokens)
        forced = None if case.union is None else list(self._forced(case, turn))
        whole = self._whole(ids, case.kind) if forced is None and turn % 2 else None  # first or last, in turn
        seconds = replay.run(ids, forced)
        if forced is None and whole is None:
            whole = self._whole(ids, case.kind)
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

    def _whole(self, ids: np.ndarray, kind: str) -> float:
        """Seconds of the pass as one call of the library."""
        arguments = causal_arguments(len(ids), self._rows(len(ids)), self.depth) | {"ids": ids}
        begin = time.perf_counter()
        self.engine.library.forward(**arguments, past=self.depth, caches=self.caches, dense=kind == DENSE)
        return time.perf_counter() - begin

    def _replay(self, tokens: int, kind: str) -> Replay:
        if (tokens, kind) not in self._replays:
            self._replays[tokens, kind] = Replay(self.engine.library, self.description.passes[_FUNCTIONS[kind]],
                                                 tokens, self._rows(tokens), self.depth, self.caches)
        return self._replays[tokens, kind]

    def _rows(self, tokens: int) -> int:
        """Rows of logits: all of a token tree's, the last of a longer prefill chunk's."""
        return tokens if tokens <= self.engine.artifact.max_tree_nodes else 1

    def _forced(self, case: Case, turn: int) -> Iterator[np.ndarray]:
        config = self.engine.artifact.config
        rng = np.random.default_rng([turn, case.tokens])
        for _ in range(config.num_hidden_layers):
            yield scores_with_union(rng, case.tokens, config.num_experts, case.union)

    def _ids(self, start: int, count: int) -> np.ndarray:
        return np.take(self.stream, range(start, start + count), mode="wrap")

    def _fill(self) -> None:
        """Cache the first ``depth`` tokens of the stream."""
        for past in range(0, self.depth, self.engine.artifact.prefill_chunk_size):
            count = min(self.engine.artifact.prefill_chunk_size, self.depth - past)
            arguments = causal_arguments(count, 1, past) | {"ids": self._ids(past, count)}
            self.engine.library.forward(**arguments, past=past, caches=self.caches)


def _token_stream(artifact: Artifact) -> tuple[np.ndarray, str]:
    """Tokens to feed, int32 [any], and what they are."""
    if artifact.token_stream is not None:
        return artifact.token_stream, "the artifact's token stream"
    ids = np.random.default_rng(0).integers(0, artifact.config.vocab_size, _RANDOM_TOKENS, np.int32)
    return ids, "random tokens"
