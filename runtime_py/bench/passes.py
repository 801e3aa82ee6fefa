"""Whole passes, as the library computes them, beside which kernels are timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..engine import Engine
from .calls import Description
from .replay import causal_arguments
from .text import Text

SPARSE, DENSE = "sparse", "dense"
FUNCTIONS = {SPARSE: "forward", DENSE: "forward_dense"}


@dataclass(frozen=True)
class Setup:
    """What a measuring process is made for."""

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


def check_lengths(artifact: Artifact, depth: int, tokens: int) -> None:
    """Raise UserError where the artifact cannot compute ``tokens`` tokens behind ``depth`` others."""
    for what, needed, limit in (("--tokens", tokens, artifact.prefill_chunk_size),
                                ("--depth and --tokens together", depth + tokens, artifact.context_window_size)):
        if needed > limit:
            raise UserError(f"{what}: {needed} tokens, this artifact takes at most {limit}; choose fewer")


class Passes:
    """Holds the weights and a cache filled with ``depth`` tokens."""

    def __init__(self, setup: Setup) -> None:
        self.depth = setup.depth
        self.engine = Engine.load(setup.artifact, setup.threads)
        self.description = Description.load(self.engine.artifact.path)
        self.caches = self.engine.library.new_caches()
        self.text = Text.of(self.engine.artifact)
        for past in range(0, self.depth, self.engine.artifact.prefill_chunk_size):
            count = min(self.engine.artifact.prefill_chunk_size, self.depth - past)
            arguments = causal_arguments(count, 1, past) | {"ids": self.ids(past, count)}
            self.engine.library.forward(**arguments, past=past, caches=self.caches)

    def facts(self) -> dict[str, Any]:
        """What a report says of artifact and device."""
        artifact, device = self.engine.artifact, self.engine.device
        return {"artifact": artifact.name, "host": artifact.host, "target": artifact.target, "device": device.name,
                "machine": device.product, "quantization": artifact.chat_config.get("quantization"),
                "weight_bytes": sum(weight.nbytes for weight in artifact.weights.values()), "text": self.text.name}

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
        """Tokens to feed, int32 [count]."""
        return self.text.part(start, count)
