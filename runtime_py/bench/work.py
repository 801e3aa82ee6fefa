"""What a kernel call has to do: bytes it reads and writes, multiply-adds it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..artifact import Artifact
from .calls import Call, Description, Pass


@dataclass(frozen=True)
class Routing:
    """What a layer's router chose: experts that at least one token uses, and pairs of token and expert; of several
    passes their means."""

    union: float
    pairs: float

    @classmethod
    def of(cls, scores: np.ndarray, dense: bool) -> Routing:
        """From router scores [n, E]; a ``dense`` pass computes every pair."""
        used = np.ones_like(scores, bool) if dense else scores != 0
        return cls(int(used.any(axis=0).sum()), int(used.sum()))


@dataclass(frozen=True)
class Work:
    """``nbytes``: read and written, each once. ``operations``: 2 per multiply-add."""

    nbytes: int
    operations: int


class WorkCounter:
    """Counts the work of the calls of one pass over n tokens and m rows, behind ``past`` cached tokens.

    * A weight is read once; of the experts' weights, those in the union.
    * Tables that are looked up by token (embedding, rotary table) are left out.
    * Of a cache that is written, the tokens' rows; else every row a token sees, once.
    * Activations by expert and token count for the pairs in use.
    * Operations: each token with each number of a matrix, each pair with each number of an expert's; attention: every
      token's query and result with every row it sees. Norms and the like have none.
    """

    def __init__(self, artifact: Artifact, description: Description, calls: Pass, sizes: Mapping[str, int],
                 past: int) -> None:
        self._weights, self._elements = artifact.weights, description.elements
        self._experts, self._positions = artifact.config.num_experts, artifact.context_window_size
        config = artifact.config
        widths = (2 * config.kv_lora_rank + config.qk_rope_head_dim) if config.is_mla else 2 * config.head_dim
        self._attended = config.num_attention_heads * widths  # multiply-adds of a token with a cached row
        self._pass, self._sizes, self._past = calls, sizes, past
        self._shapes = {name: tensor.extents(sizes) for name, tensor in calls.values.items()}

    def count(self, routings: Sequence[Routing]) -> list[Work]:
        """The work of every call, in order; ``routings`` by layer."""
        return [Work(self._bytes(call, routing), self._operations(call, routing))
                for call, routing in self._routed(routings)]

    def weights_read(self, routings: Sequence[Routing]) -> int:
        """Bytes of weights alone that all calls read together."""
        return round(sum(self._weight_bytes(call, name, routing) for call, routing in self._routed(routings)
                         for name in call.inputs if name in self._weights))

    def _routed(self, routings: Sequence[Routing]) -> Iterator[tuple[Call, Routing]]:
        """Every call with what the router of its layer chose."""
        layer = 0
        for call in self._pass.calls:
            layer += sum(name in self._pass.scores for name in call.results)
            yield call, routings[max(layer - 1, 0)]

    def reads_experts(self, call: Call) -> bool:
        """Whether the call computes experts: it takes their weights, and an integer for each that says which are in
        use."""
        chosen = any(self._pass.values[name].dtype == "int32" and self._shapes[name] == (self._experts,)
                     for name in call.inputs if name in self._pass.values)
        return chosen and any(self._is_experts(name) for name in call.inputs)

    def _is_experts(self, name: str) -> bool:
        return name in self._weights and self._weights[name].ndim > 3 and len(self._weights[name]) == self._experts

    def _is_table(self, call: Call, name: str) -> bool:
        """The embedding, or the rotary table: the one plain matrix among packed ones, with a row per position."""
        weight = self._weights[name]
        return "ids" in call.inputs or (weight.ndim == 2 and len(weight) == self._positions)

    def _bytes(self, call: Call, routing: Routing) -> int:
        n, total = self._sizes["n"], 0.0
        for name in (*call.inputs, *call.results):
            if name in self._weights:
                total += self._weight_bytes(call, name, routing)
            elif name in self._pass.values:
                shape = self._shapes[name]
                share = routing.pairs / (n * self._experts) if self._by_pair(name) else 1
                total += math.prod(shape) * np.dtype(self._pass.values[name].dtype).itemsize * share
            elif (shape := self._pass.arguments[name].extents(self._sizes)):
                nbytes = math.prod(shape) * np.dtype(self._pass.arguments[name].dtype).itemsize
                rows = n if name in call.in_place else self._past + n
                total += nbytes * rows / shape[0] if self._is_cache(name) else nbytes
        return round(total)

    def _weight_bytes(self, call: Call, name: str, routing: Routing) -> float:
        if self._is_table(call, name):
            return 0
        share = routing.union / self._experts if self._is_experts(name) and self.reads_experts(call) else 1
        return self._weights[name].nbytes * share

    def _operations(self, call: Call, routing: Routing) -> int:
        n = self._sizes["n"]
        values = self._pass.values
        rows = self._sizes["m"] if any(values[name].depends_on("m") for name in call.results) else n
        products = 0.0
        for name in call.inputs:
            if name in self._weights and self._weights[name].ndim > 1 and not self._is_table(call, name):
                elements = self._elements[name]
                experts = self._is_experts(name) and self.reads_experts(call)
                products += elements / self._experts * routing.pairs if experts else elements * rows
            elif self._is_cache(name) and name not in call.in_place:
                products += self._attended * sum(range(self._past + 1, self._past + n + 1))
        return round(2 * products)

    def _is_cache(self, name: str) -> bool:
        tensor = self._pass.arguments.get(name)
        return bool(tensor and tensor.shape) and not any(tensor.depends_on(size) for size in self._sizes)

    def _by_pair(self, name: str) -> bool:
        """Activations [experts, tokens, ...]."""
        shape = self._pass.values[name].shape or ()
        return len(shape) > 2 and shape[0] == self._experts and isinstance(shape[1], str)
