"""Whole passes, as the library computes them: what is timed in a measuring process, on the processor or a device."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..engine import Engine
from .calls import Description
from .replay import causal_arguments
from .work import Routing, WorkCounter

SPARSE, DENSE = "sparse", "dense"
FUNCTIONS = {SPARSE: "forward", DENSE: "forward_dense"}
_RANDOM_TOKENS = 1 << 16


@dataclass(frozen=True)
class Setup:
    """What a measuring process is made for; ``device`` None: what the artifact was built for."""

    artifact: str
    threads: int
    depth: int
    device: str | None = None


@dataclass(frozen=True)
class Case:
    """A pass to time: ``kind`` SPARSE or DENSE; ``union``: share of the experts to force into every layer's union
    (None: as the router chooses)."""

    tokens: int
    kind: str = SPARSE
    union: float | None = None


@dataclass(frozen=True)
class Pass:
    """``seconds`` it took; ``nbytes`` of weights, activations and cache that its kernels need; ``active``, ``union``:
    shares of the experts, means over tokens and layers."""

    seconds: float
    nbytes: int
    active: float
    union: float


def prepare(setup: Setup, tokens: int) -> dict[str, Any]:
    """Load everything for passes of at most ``tokens`` tokens. Returns what a report says of artifact and device.
    Raises UserError for what the artifact cannot do."""
    check_lengths(Artifact.open(setup.artifact), setup.depth, tokens)
    return _passes(setup).facts()


def measure(setup: Setup, case: Case, turn: int) -> Pass:
    """Time one pass; ``turn`` chooses its tokens."""
    return _passes(setup).time(case, turn)


def check_lengths(artifact: Artifact, depth: int, tokens: int) -> None:
    """Raise UserError where the artifact cannot compute ``tokens`` tokens behind ``depth`` others."""
    for what, needed, limit in (("--tokens", tokens, artifact.prefill_chunk_size),
                                ("--depth and --tokens together", depth + tokens, artifact.context_window_size)):
        if needed > limit:
            raise UserError(f"{what}: {needed} tokens, this artifact takes at most {limit}; choose fewer")


@cache
def _passes(setup: Setup) -> Passes:
    return Passes(setup)


class Passes:
    """Holds the weights and a cache filled with ``depth`` tokens."""

    def __init__(self, setup: Setup) -> None:
        self.depth = setup.depth
        self.engine = Engine.load(setup.artifact, setup.threads, device=setup.device)
        self.description = Description.load(self.engine.artifact.path)
        self.caches = self.engine.library.new_caches()
        self.stream, self.text = _token_stream(self.engine.artifact)
        for past in range(0, self.depth, self.engine.artifact.prefill_chunk_size):
            count = min(self.engine.artifact.prefill_chunk_size, self.depth - past)
            arguments = causal_arguments(count, 1, past) | {"ids": self.ids(past, count)}
            self.engine.library.forward(**arguments, past=past, caches=self.caches)

    def facts(self) -> dict[str, Any]:
        """What a report says of artifact and device."""
        artifact, device = self.engine.artifact, self.engine.device
        return {"artifact": artifact.name, "host": artifact.host, "target": artifact.target, "device": device.name,
                "machine": device.product, "quantization": artifact.chat_config.get("quantization"),
                "weight_bytes": sum(weight.nbytes for weight in artifact.weights.values()), "text": self.text}

    def time(self, case: Case, turn: int) -> Pass:
        """Time one pass whose tokens ``turn`` chooses."""
        seconds, scores = self.run(self.ids(self.depth + turn * case.tokens, case.tokens), case.kind)
        calls = self.description.passes[FUNCTIONS[case.kind]]
        sizes = {"n": case.tokens, "m": self.rows(case.tokens)}
        counter = WorkCounter(self.engine.artifact, self.description, calls, sizes, self.depth)
        work = counter.count([Routing.of(layer, case.kind == DENSE) for layer in scores])
        used = np.stack(scores) != 0
        return Pass(seconds, sum(done.nbytes for done in work), float(used.mean()), float(used.any(axis=1).mean()))

    def run(self, ids: np.ndarray, kind: str) -> tuple[float, list[np.ndarray]]:
        """One call of the library: its seconds, until the device is done, and the scores of its routers."""
        library = self.engine.library
        arguments = causal_arguments(len(ids), self.rows(len(ids)), self.depth) | {"ids": ids}
        library.wait()
        begin = time.perf_counter()
        _, scores, _ = library.forward(**arguments, past=self.depth, caches=self.caches, dense=kind == DENSE)
        library.wait()
        return time.perf_counter() - begin, list(scores)

    def rows(self, tokens: int) -> int:
        """Rows of logits: all of a token tree's, the last of a longer prefill chunk's."""
        return tokens if tokens <= self.engine.artifact.max_tree_nodes else 1

    def ids(self, start: int, count: int) -> np.ndarray:
        """Tokens of the stream, int32 [count]."""
        return np.take(self.stream, range(start, start + count), mode="wrap")


def _token_stream(artifact: Artifact) -> tuple[np.ndarray, str]:
    """Tokens to feed, int32 [any], and what they are."""
    if artifact.token_stream is not None:
        return artifact.token_stream, "the artifact's token stream"
    ids = np.random.default_rng(0).integers(0, artifact.config.vocab_size, _RANDOM_TOKENS, np.int32)
    return ids, "random tokens"
