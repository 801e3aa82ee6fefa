"""Walks through what MLC's engine does with an artifact, and holds the results against our own runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError
from schedules import twins

from ..artifact import CHAT_CONFIG
from ..engine import Engine
from ..tvm_runtime import model_library
from ..weights import INDEX
from .draft_check import DraftWalk
from .engine import EmulatedEngine
from .functions import CHAT, FUNCTIONS, SAMPLER, SAMPLING_DEVICES
from .sampler_check import SamplerWalk
from .schema import check_chat_config, check_metadata, check_tensor_cache
from .steps import Step, Wrong, attempt

SEQUENCES, TOKENS = 4, 256
_PROMPT, _STEPS = 12, 24
# NMSE of logits against our runtime's, and the gap of the two largest below which a choice may differ: attention sums
# in another order here, with a float16 cache its results are rounded, and codes of activations enlarge either (with
# keys and values of every head they stand for other numbers).
_BOUNDS = {"f32": (1e-9, 1e-4), "float32": (1e-9, 1e-4), "int8x2": (1e-7, 1e-3), "float16": (1e-4, 5e-2),
           "int8": (1e-2, 0.3)}


def check(engine: Engine) -> Iterator[Step]:
    """The steps, in MLC's order; none behind one without which they are impossible. ``engine``: the artifact, loaded by
    our own runtime, which says what is right."""
    artifact, mlc = engine.artifact, None

    def load() -> str:
        nonlocal mlc
        mlc = EmulatedEngine(model_library(artifact.library).module, artifact.path, *engine.device.codes[0])
        return f"{len(mlc.metadata['params'])} weights by name"

    for name, step in (("files", lambda: files(artifact.path)), ("load", load),
                       ("functions", lambda: _functions(mlc, engine.device.kind)), ("metadata", lambda: metadata(mlc)),
                       ("create cache", lambda: _create(mlc))):
        result = attempt(name, step)
        yield result
        if not result.ok:
            return
    walk = _Walk(engine, mlc)
    for name, step in walk.steps():
        yield attempt(name, step)
    if "mlc_draft" in artifact.chat_config["blockffn"]:
        yield from walk.draft().steps(files, metadata, _create)


def presence(has: Callable[[str], bool], device: str) -> dict[str, str]:
    """By function "present", "missing" or "optional, absent". ``has``: whether the library has one of that name."""
    needed = {CHAT, SAMPLER} if device in SAMPLING_DEVICES else {CHAT}
    return {name: "present" if has(name) else "missing" if function.needed_for in needed else "optional, absent"
            for name, function in FUNCTIONS.items()}


def _functions(mlc: EmulatedEngine, device: str) -> str:
    found = presence(mlc.has, device)
    missing = [name for name, state in found.items() if state == "missing"]
    if missing:
        raise Wrong(f"missing: {', '.join(missing)}; rebuild with --mlc")
    return f"{list(found.values()).count('present')} of {len(found)}, the others are optional"


def files(folder: Path) -> str:
    """What the engine reads of a model's folder beside the library. Raises Wrong."""
    config, index = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CHAT_CONFIG, INDEX))
    _fits(check_chat_config, config, CHAT_CONFIG)
    _fits(check_tensor_cache, index, INDEX)
    return f"configuration, {sum(len(shard['records']) for shard in index['records'])} tensors"


def metadata(mlc: EmulatedEngine) -> str:
    """What the engine reads of a library before it uses it. Raises Wrong."""
    found = mlc.metadata
    _fits(check_metadata, found, "_metadata")
    return f"{found['model_type']}, {found['quantization']}, batches of {found['max_batch_size']}"


def _fits(check_fields: Callable[[Any, str], None], raw: Any, where: str) -> None:
    try:
        check_fields(raw, where)
    except UserError as error:
        raise Wrong(f"{error}; rebuild with --mlc") from None


def _create(mlc: EmulatedEngine) -> str:
    mlc.create_cache(SEQUENCES, TOKENS)
    return f"{SEQUENCES} sequences, {TOKENS} tokens"


class _Walk:
    """The steps behind the creation of the cache. Sequence 0 holds the text."""

    def __init__(self, engine: Engine, mlc: EmulatedEngine) -> None:
        self._engine, self._mlc = engine, mlc
        codes = engine.artifact.chat_config["blockffn"]["activations"]
        self._nmse, self._gap = max(_BOUNDS[codes], _BOUNDS[engine.artifact.cache_dtype])
        vocab = engine.artifact.config.vocab_size
        rng = np.random.default_rng(0)
        stream = engine.artifact.token_stream
        self._prompt = (rng.integers(0, vocab, _PROMPT) if stream is None else stream[:_PROMPT]).tolist()
        self._other = rng.integers(0, vocab, 5).tolist()
        generation = engine.generate(self._prompt, _STEPS, draft="none")
        self._text = [*self._prompt, *(token.id for token in generation)]
        self._logits = engine.score(self._text).logits  # row t: behind token t

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Name and function, in order."""
        yield "prefill", self._prefill
        yield "decode", self._decode
        yield "go back", self._go_back
        yield "second turn", self._second_turn
        yield "long prompt", self._long_prompt
        yield "two sequences", self._batch
        yield "fork", self._fork
        if self._mlc.has("batch_verify"):
            yield "verify a chain", lambda: self._verify([-1, 0, 1, 2])
            if self._engine.device.kind == "cpu":  # elsewhere TVM's runtime cannot keep a path: its copy refuses
                yield "verify a tree", lambda: self._verify([-1, 0, 0, 2])
        if self._mlc.has("get_logits"):
            yield "hidden states", self._hidden
        yield "sampler path", self._sampler
        if all(map(self._mlc.has, SamplerWalk.FUNCTIONS)):
            yield from SamplerWalk(self._mlc, self._logits[:5]).steps()
        if self._mlc.has("scatter_probs"):
            yield "scatter, gather", self._move

    def draft(self) -> DraftWalk:
        """The steps with the draft model, which come last."""
        return DraftWalk(self._engine, self._mlc, self._close, self._prompt, self._other, self._text,
                         _gaps(self._logits), self._gap)

    def _close(self, found: np.ndarray, expected: np.ndarray, what: str = "logits") -> str:
        error = float(((found - expected.astype(np.float64))**2).sum() / (expected.astype(np.float64)**2).sum())
        if not error <= self._nmse:
            raise Wrong(f"{what} differ from our runtime's: NMSE {error:.2g}, allowed is {self._nmse:.2g}")
        return f"NMSE {error:.1e}"

    def _prefill(self) -> str:
        self._mlc.add(0)
        return self._close(self._mlc.prefill(0, self._prompt), self._logits[_PROMPT - 1])

    def _decode(self) -> str:
        rows = np.array([self._mlc.decode(0, token) for token in self._text[_PROMPT:]])
        expected = self._logits[_PROMPT:]
        gaps = _gaps(expected)
        differ = (rows.argmax(1) != expected.argmax(1)) & (gaps > self._gap)
        if differ.any():
            at = int(np.argmax(differ))
            raise Wrong(f"token {at}: another one than our runtime's, whose largest logits are {gaps[at]:.2g} apart")
        return f"{len(rows)} greedy tokens as ours, {self._close(rows, expected)}"

    def _go_back(self) -> str:
        self._mlc.pop(0, 3)
        return self._close(self._mlc.decode(0, self._text[-3]), self._logits[-3])

    def _second_turn(self) -> str:
        """Two tokens, or the second of them by itself."""
        both = self._mlc.prefill(0, self._text[-2:])
        self._mlc.pop(0, 1)
        alone = self._mlc.prefill(0, self._text[-1:])
        return self._close(np.array([both, alone]), self._logits[[-1, -1]])

    def _long_prompt(self) -> str:
        """One chunk and a half."""
        chunk, room = self._mlc.prefill_chunk, self._engine.artifact.context_window_size
        text = np.resize(self._text, min(chunk + chunk // 2, TOKENS - len(self._text), room)).tolist()
        self._mlc.add(1)
        logits = self._mlc.prefill(1, text)
        self._mlc.remove(1)
        return f"{len(text)} tokens, {chunk} at a time, {self._close(logits, self._engine.score(text).logits[-1])}"

    def _batch(self) -> str:
        self._mlc.add(1)
        self._mlc.add(2)
        alone = self._engine.score([*self._other, *self._prompt[:2]]).logits
        first = self._mlc.batch_prefill({1: self._prompt, 2: self._other})
        second = self._mlc.batch_decode({1: self._text[_PROMPT], 2: self._prompt[0]})
        third = self._mlc.batch_prefill({1: self._text[_PROMPT + 1:_PROMPT + 4], 2: self._prompt[1:2]})
        for sequence in (1, 2):
            self._mlc.remove(sequence)
        ours = np.stack([self._logits[[_PROMPT - 1, _PROMPT, _PROMPT + 3]], alone[-3:]], axis=1)
        return self._close(np.stack([first, second, third]), ours)

    def _fork(self) -> str:
        self._mlc.fork(0, 1)
        self._mlc.pop(1, 2)
        one = self._mlc.decode(1, self._text[-2])
        self._mlc.pop(1, 1)
        two = self._mlc.prefill(1, self._text[-2:])
        self._mlc.remove(1)
        return self._close(np.array([one, two]), self._logits[-2:])

    def _verify(self, parents: list[int]) -> str:
        """The text's last tokens as a tree, with others beside them; then keep the text's."""
        path = [0]
        while path[-1] in parents:
            path.append(max(node for node, parent in enumerate(parents) if parent == path[-1]))
        self._mlc.pop(0, len(path) + 1)
        start = len(self._text) - len(path) - 1
        tokens = [self._other[node] for node in range(len(parents))]
        for level, node in enumerate(path):
            tokens[node] = self._text[start + level]
        logits = self._mlc.verify(0, tokens, parents)
        self._mlc.commit(0, path)
        ours = self._logits[start:start + len(path)]
        self._close(logits[path], ours)
        return self._close(np.array([*logits[path], self._mlc.decode(0, self._text[-1])]),
                           np.array([*ours, self._logits[-1]]))

    def _hidden(self) -> str:
        self._mlc.pop(0, 2)
        states = self._mlc.hidden(0, self._text[-2:])
        logits, _ = self._mlc.call("get_logits", states, params=True)
        return self._close(logits, self._logits[-2:])

    def _sampler(self) -> str:
        """Bias, penalties, a mask, probabilities: in this order, as the engine calls them."""
        logits = self._logits[:3].copy()
        rows, tokens = np.array([0, 2], np.int32), np.array([1, 3], np.int32)
        bias, counts = np.array([1.5, -2.0], np.float32), np.array([1, 2], np.int32)
        penalties = np.array([[0.1, 0.2, 1.1], [0.3, 0.0, 0.9]], np.float32)
        expected = twins.f64(logits)
        expected[rows, tokens] += bias
        expected = twins.apply_penalty(expected, rows, tokens, counts, penalties)
        masked = np.array([1], np.int32)
        bits = np.full((3, -(-logits.shape[1] // 32)), 0x55555555, np.int32)
        expected = twins.apply_bitmask(expected, masked, bits)
        temperature = np.array([0.7, 1.0, 1e-6], np.float32)
        for name, *others in (("apply_logit_bias_inplace", rows, tokens, bias),
                              ("apply_penalty_inplace", rows, np.arange(2, dtype=np.int32), tokens, counts, penalties),
                              ("apply_bitmask_inplace", masked, bits)):
            _, (logits, *_) = self._mlc.call(name, logits, *others)
        probs, _ = self._mlc.call("softmax_with_temperature", logits[:, None], temperature)
        return self._close(probs[:, 0], twins.softmax_with_temperature(expected, temperature), "probabilities")

    def _move(self) -> str:
        config = self._engine.artifact.config
        for what, width in (("probs", config.vocab_size), ("hidden_states", config.hidden_size)):
            source = np.arange(2 * width, dtype=np.float32).reshape(2, width)
            rows = np.array([3, 1], np.int32)
            _, (_, _, target) = self._mlc.call(f"scatter_{what}", source, rows, np.zeros((4, width), np.float32))
            _, (_, _, back) = self._mlc.call(f"gather_{what}", target, rows, np.zeros((2, width), np.float32))
            if not (np.array_equal(back, source) and not target[[0, 2]].any()):
                raise Wrong(f"scatter_{what} and gather_{what} do not bring back what they were given")
        return "rows of probabilities and states come back"


def _gaps(logits: np.ndarray) -> np.ndarray:
    """f32 [n, V] -> how far apart each row's two largest are."""
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    return first - second
