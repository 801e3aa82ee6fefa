"""Repeats a pass kernel by kernel on real data: every kernel's inputs are what the kernels before it made."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..library import Library
from ..tvm_runtime import aligned_zeros, load_runtime
from ..weights import ALIGNMENT
from .calls import FILE, Pass


def causal_arguments(tokens: int, rows: int, past: int) -> dict[str, np.ndarray]:
    """The int32 arguments of a pass over ``tokens`` tokens behind ``past`` cached ones, with the logits of the last
    ``rows``; ids are left 0."""
    steps = np.arange(tokens, dtype=np.int32)
    return {"ids": np.zeros_like(steps), "positions": past + steps, "visible": past + steps + 1,
            "ancestors": np.zeros((tokens, 2), np.int32), "rows": steps[tokens - rows:]}


class Replay:
    """The kernels of one kind of pass, for fixed numbers of tokens and rows behind ``past`` cached tokens.

    Buffers are made once and reused within a pass as soon as they are free, as the compiled pass does, so that a
    kernel finds its inputs in the processor's caches as it does there. ``caches`` are the library's.
    """

    def __init__(self, library: Library, description: Pass, tokens: int, rows: int, past: int, caches: Any) -> None:
        self._pass, self._wrap = description, _wrapper()
        self.sizes = {"n": tokens, "m": rows}
        self._arrays: dict[str, np.ndarray] = {}
        self._tensors: dict[str, Any] = dict(library.weights)
        given = causal_arguments(tokens, rows, past)
        for name, tensor in description.arguments.items():
            stem, _, index = name.partition(".")
            if name in given:
                self._add(name, aligned_zeros(given[name].shape, given[name].dtype))
                self._arrays[name][...] = given[name]
            elif stem == "caches":
                self._tensors[name] = caches[int(index)]
            elif name == "past" and tensor.shape is None:
                self._tensors[name] = past
            else:
                raise UserError(f"{FILE}: a pass takes {name!r}, unknown to this runtime; rebuild the artifact")
        self._assign_buffers()
        score_layers = {name: layer for layer, name in enumerate(description.scores)}
        self._steps: list[tuple[Callable[..., Any], list[Any], list[int]]] = []
        for call in description.calls:
            operands = [self._tensors[name] for name in (*call.inputs, *call.results)]
            made = [score_layers[name] for name in call.results if name in score_layers]
            self._steps.append((library.kernel(call.kernel), operands, made))

    def run(self, ids: Sequence[int], scores: Sequence[np.ndarray] | None = None) -> list[float]:
        """One pass over ``ids``; seconds of every call, in order. ``scores``: per layer float32 [n, E], put in the
        place of what the router computed."""
        self._arrays["ids"][...] = ids
        clock, seconds = time.perf_counter, []
        collecting = gc.isenabled()
        gc.disable()
        try:
            for kernel, operands, made in self._steps:
                begin = clock()
                kernel(*operands)
                seconds.append(clock() - begin)
                if scores is not None:
                    for layer in made:
                        self.scores[layer][...] = scores[layer]
        finally:
            if collecting:
                gc.enable()
        return seconds

    @property
    def logits(self) -> np.ndarray:
        """float32 [m, V] of the last run."""
        return self._arrays[self._pass.logits]

    @property
    def scores(self) -> list[np.ndarray]:
        """Router scores of the last run, one float32 [n, E] per layer."""
        return [self._arrays[name] for name in self._pass.scores]

    def _assign_buffers(self) -> None:
        """Memory for every value; what no later call reads is passed on to the next value of the same size."""
        last_use = {name: i for i, call in enumerate(self._pass.calls) for name in (*call.inputs, *call.results)}
        kept = {self._pass.logits, *self._pass.scores}
        free: dict[int, list[np.ndarray]] = {}
        for i, call in enumerate(self._pass.calls):
            for name in call.results:
                tensor = self._pass.values[name]
                shape, dtype = tensor.extents(self.sizes), np.dtype(tensor.dtype)
                nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                spare = free.get(nbytes)
                memory = spare.pop() if spare else aligned_zeros((nbytes,), np.uint8)
                self._add(name, memory.view(dtype).reshape(shape))
            for name in dict.fromkeys((*call.inputs, *call.results)):
                if name in self._pass.values and name not in kept and last_use[name] == i:
                    array = self._arrays[name]
                    free.setdefault(array.nbytes, []).append(array.reshape(-1).view(np.uint8))

    def _add(self, name: str, array: np.ndarray) -> None:
        self._arrays[name], self._tensors[name] = array, self._wrap(array)


def _wrapper() -> Callable[[np.ndarray], Any]:
    ffi = load_runtime()
    return lambda array: ffi.from_dlpack(array, require_alignment=ALIGNMENT, require_contiguous=True)
