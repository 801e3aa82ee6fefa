"""The Python API: load an artifact, generate from it, score text with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from blockffn_mlc.errors import UserError

from .artifact import Artifact
from .controller import Controller, default_shapes
from .cost_measurement import cost_table
from .cost_table import CostTable
from .devices import Device, find_device, kind_of_target
from .drafters import Drafter, make_drafter
from .generation import Generation, check_limits
from .library import Library
from .sampling import GREEDY, Sampling
from .session import Output, Session
from .speculation import PLAIN, FixedShape, ShapeController, fixed_shape
from .stats import Stopwatch
from .tokenizer import StreamDecoder, Tokenizer
from .tvm_runtime import pin_threads, set_threads

_SCORE_BYTES = 64 << 20  # logits held at a time while scoring


@dataclass(frozen=True)
class Score:
    """Teacher-forced results for T tokens: ``logits`` float32 [T, V] (row t predicts token t + 1),
    ``router_scores`` float32 [L, T, E] after the router's norm, ``log_probs`` float64 [T - 1] of the
    tokens from the second on."""

    logits: np.ndarray
    router_scores: np.ndarray
    log_probs: np.ndarray

    @property
    def perplexity(self) -> float:
        return perplexity(self.log_probs)


class Engine:
    """A loaded artifact. Weights are shared; every Session has its own cache."""

    def __init__(self, artifact: Artifact, library: Library, device: Device, threads: int,
                 load_seconds: float = 0.0) -> None:
        self.artifact = artifact
        self.library = library
        self.device = device
        self.threads = threads
        self.load_seconds = load_seconds
        self.progress: Callable[[str], None] = lambda line: None  # told of what takes a moment
        self._costs: dict[tuple[str, bool], CostTable] = {}  # by drafter, and whether passes are dense

    @classmethod
    def load(cls, path: str | Path, threads: int | None = None, *, mmap: bool = False, pin: bool = False,
             device: str | None = None) -> Engine:
        """Open and check an artifact folder. ``threads`` None: one per physical core; the first engine of a
        process fixes the number. ``device``: as ``find_device`` takes it; None: what the artifact was built for.
        ``mmap``: use the weights' files in place instead of reading them; other devices get a copy either way.
        ``pin``: bind this thread, which must be the one that generates, and the kernels' others to a core each.
        Raises UserError for whatever is wrong with the folder or the device."""
        clock = Stopwatch()
        artifact = Artifact.open(path, mmap)
        threads = set_threads(threads)
        on = find_device(kind_of_target(artifact.target) or "cpu" if device is None else device)
        if on.copies:  # they are read once, and are no copy of their own
            artifact = replace(artifact, mmap=True)
        library = Library(artifact, on)
        if on.copies:
            artifact.release_weights()
        if pin:
            pin_threads(threads)
        return cls(artifact, library, on, threads, clock.seconds)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError when the artifact has no (usable) tokenizer."""
        return Tokenizer.load(self.artifact.path / "tokenizer.json")

    @property
    def has_tokenizer(self) -> bool:
        return (self.artifact.path / "tokenizer.json").is_file()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, bos first, as this family's Hugging Face tokenizers give them."""
        return [self.artifact.config.bos_token_id, *self.tokenizer.encode(text)]

    def session(self, draft: str | Drafter = "none", *, dense: bool = False) -> Session:
        """A new, empty conversation cache, with a drafter of its own (see ``generate``). ``dense``: every expert is
        computed, to compare with."""
        return Session(self.artifact, self.library, make_drafter(draft, self.artifact, self.library), dense=dense)

    def drafting(self, draft: str | Drafter, tree_size: int | None = None, *,
                 dense: bool = False) -> tuple[Drafter | None, ShapeController]:
        """A drafter for a new session, and what decides on its trees; ``draft`` and ``tree_size`` as for ``generate``.
        "auto" is lookup where the artifact's draft model could not pay on this device. Raises UserError."""
        drafter = make_drafter(draft, self.artifact, self.library)
        controller = self.controller(drafter, tree_size, dense=dense)
        if draft == "auto" and tree_size is None and drafter.by_level and isinstance(controller, FixedShape):
            return self.drafting("ngram", dense=dense)
        return drafter, controller

    def controller(self, drafter: Drafter | None, tree_size: int | None = None, *,
                   dense: bool = False) -> ShapeController:
        """What decides how large a tree ``drafter`` drafts from pass to pass; ``tree_size`` fixes it (1: plain
        decoding). ``dense``: passes compute every expert, which has costs of its own. Raises UserError for a size that
        the artifact or the drafter cannot have."""
        limit = min(self.artifact.max_tree_nodes, self.artifact.prefill_chunk_size)
        if tree_size is not None and not 1 <= tree_size <= limit:
            raise UserError(f"tree size: expected 1 to {limit} nodes, which this artifact allows, found {tree_size}")
        if drafter is None and tree_size not in (None, 1):
            raise UserError(f"tree size: {tree_size} nodes need a drafter, found draft 'none'; use 'auto'")
        if drafter is None or tree_size == 1:
            return FixedShape(PLAIN)
        if tree_size is not None:
            return FixedShape(fixed_shape(tree_size, drafter))
        key = drafter.name, dense
        if key not in self._costs:
            self._costs[key] = cost_table(self, drafter, self.progress, dense=dense)
        costs = self._costs[key]
        return Controller(costs) if len(default_shapes(costs)) > 1 else FixedShape(PLAIN)  # nothing else can pay

    def generate(self, prompt: str | Sequence[int], max_tokens: int | None = None, sampling: Sampling = GREEDY, *,
                 draft: str | Drafter = "auto", tree_size: int | None = None) -> Generation:
        """Continue a text or token ids (taken as they are) until an eos token or ``max_tokens``
        (None: up to 256, as the window allows). Returns an iterator of tokens.

        Drafts change how fast tokens come, never which. ``draft``: "eagle" (the artifact's draft model), "ngram"
        (lookup in the text itself), "auto" (the former where there is one that can pay, else the latter), "none", or a
        drafter.
        ``tree_size``: nodes of the tree drafted in every pass (1: none; None: as it pays).

        Raises UserError before any work when prompt and ``max_tokens`` do not fit into the context window, or the
        artifact cannot draft so."""
        session = self.session()
        ids = session.checked(self._ids(prompt))
        check_limits(session, ids, max_tokens)  # before the controller's costs may be measured
        drafter, controller = self.drafting(draft, tree_size)
        session.attach(drafter)
        decoder = StreamDecoder(self.tokenizer, ids) if self.has_tokenizer else None
        return Generation(session, ids, sampling, stop_ids=self.artifact.config.eos_token_id, max_tokens=max_tokens,
                          decoder=decoder, controller=controller)

    def score(self, text: str | Sequence[int], chunk: int | None = None) -> Score:
        """Logits, router scores and log-probabilities of a text or of token ids (taken as they are).
        ``chunk`` tokens at a time; on the CPU results do not depend on it. Raises UserError when the
        tokens do not fit into the context window."""
        ids = self._ids(text)
        outputs = list(self.score_chunks(ids, chunk))
        logits = np.concatenate([output.logits for output in outputs])
        return Score(logits, np.concatenate([output.router_scores for output in outputs], axis=1),
                     token_log_probs(logits[:-1], ids[1:]))

    def score_chunks(self, text: str | Sequence[int], chunk: int | None = None) -> Iterator[Output]:
        """``score`` in pieces: the outputs of consecutive chunks, at most 64 MiB of logits each by default."""
        chunk = chunk or max(1, _SCORE_BYTES // (4 * self.artifact.config.vocab_size))
        outputs = self.session().stream(self._ids(text), chunk, all_logits=True)
        return (replace(output, logits=np.asarray(output.logits)) for output in outputs)

    def _ids(self, text: str | Sequence[int]) -> Sequence[int]:
        return self.encode(text) if isinstance(text, str) else text


def token_log_probs(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """log softmax(logits)[target] per row, float64 [m], from logits float32 [m, V]. One row at a time is widened."""
    result = np.empty(len(logits))
    for row, (scores, target) in enumerate(zip(logits, targets, strict=True)):
        wide = scores.astype(np.float64)
        top = wide.max()
        result[row] = wide[target] - top - np.log(np.exp(wide - top).sum())
    return result


def perplexity(log_probs: np.ndarray) -> float:
    """exp of the mean negative log-probability; nan without a predicted token."""
    return float(np.exp(-np.mean(log_probs))) if len(log_probs) else float("nan")
