"""Other engines under the benchmark's tasks: llama.cpp, ONNX Runtime, the PyTorch reference; in the measuring process
of each. The functions are those of runtime_py.bench.measure."""

from __future__ import annotations

import importlib.util
import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockffn_mlc.errors import UserError
from runtime_py.bench.accounting import Sample
from runtime_py.bench.identity import source_revision
from runtime_py.bench.machine import clock_mhz, processor
from runtime_py.bench.tasks import CHUNK, GENERATE, PROMPT, Task
from runtime_py.stats import peak_memory

if TYPE_CHECKING:
    from blockffn_mlc.sources import ModelSource

TORCH, ONNX = "torch", "onnx"
_PACKAGES = {TORCH: ("torch",), ONNX: ("onnx", "onnxruntime")}  # else llama.cpp
_LLAMA_PACKAGES = ("gguf", "llama_cpp")
_STREAM = 1 << 16  # random tokens
_CHUNK = 512  # tokens of a prompt in one pass, as for our artifacts


@dataclass(frozen=True)
class Setup:
    """``peer`` as on the command line; ``model``: what it reads, a file, a folder or, for PyTorch, a model's name."""

    peer: str
    model: str
    threads: int

    def __str__(self) -> str:
        return f"{self.peer} for {self.threads} thread(s)"


def check_installed(peer: str) -> None:
    """Raise UserError where a package that ``peer`` needs is missing."""
    for package in _PACKAGES.get(peer.partition(":")[0], _LLAMA_PACKAGES):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"peer {peer}: this machine lacks {package}; run: pip install 'blockffn-mlc[peers]', "
                            "or leave the peer out")


def write_model(peer: str, model: ModelSource, spec: str, folder: Path) -> str:
    """Write the model for ``peer`` into ``folder`` unless it is there; returns what ``Setup.model`` says. Raises
    UserError, also for an unknown peer."""
    name, _, form = peer.partition(":")
    if peer == TORCH:
        return spec
    if name == ONNX:
        from blockffn_mlc.onnx.export import plan_onnx, write_onnx
        from blockffn_mlc.progress import Progress

        out = folder / f"onnx-{form}"
        if not out.is_dir():
            write_onnx(plan_onnx(model.config, form), model.config, model.weights, None, out, Progress())
        return str(out)
    from gguf_models import GgufModel

    return str(GgufModel(model.config, name, form).write(folder))


def prepare(setup: Setup, tasks: Sequence[Task]) -> dict[str, Any]:
    """Load the model. Returns what a record says of engine and loading."""
    begin = time.perf_counter()
    engine = _engine(setup)
    loaded = time.perf_counter()
    engine.forward([1], every=True)
    first = time.perf_counter() - loaded
    return {"artifact": engine.title, "artifact_digest": None, "target": engine.version, "host": None,
            "quantization": engine.format, "activations": None, "built_by_tvm": None,
            "weight_bytes": engine.weight_bytes, "device": "cpu", "device_name": processor(), "driver": None,
            "clock_mhz": clock_mhz(), "processor": processor(), "system": platform.platform(), "tvm": None,
            "source": source_revision(), "threads": setup.threads, "text": "random tokens", "load_s": loaded - begin,
            "first_pass_s": first, "draft": None}


def measure(setup: Setup, task: Task, turn: int) -> Sample:
    """Run a task; ``turn`` chooses its tokens, but those of decoding are always the same."""
    engine = _engine(setup)
    stream = np.random.default_rng(0).integers(0, engine.vocabulary, _STREAM)
    start = task.depth + (0 if task.kind == GENERATE else turn * task.tokens)
    ids = np.take(stream, range(start, start + task.tokens), mode="wrap").tolist()
    engine.fill(np.take(stream, range(task.depth), mode="wrap").tolist())
    size = 1 if task.kind == GENERATE else task.tokens if task.kind == CHUNK else _CHUNK
    parts = [ids[i : i + size] for i in range(0, len(ids), size)]
    begin = time.perf_counter()
    for part in parts:
        engine.forward(part, every=task.kind != PROMPT)
    seconds = time.perf_counter() - begin
    union = engine.active if engine.active == 1 or size == 1 else None
    read = len(parts) * engine.bytes_per_pass if union == 1 else None
    return Sample(seconds, len(parts), read, None, engine.active, union)


def conclude(setup: Setup) -> dict[str, Any]:
    """What a record says when all is measured: the process's largest resident memory so far, and no roofs, which only
    our artifacts bring the kernel for."""
    return {"peak_memory_bytes": peak_memory(), "roof_gb_per_s": None, "roof_gop_per_s": None}


@cache
def _engine(setup: Setup) -> Engine:
    kind = {TORCH: Torch, ONNX: Onnx}.get(setup.peer.partition(":")[0], LlamaCpp)
    return kind(setup)


class Engine(ABC):
    """A model and its cache. ``title``, ``format``, ``version``: for records; ``weight_bytes`` of all weights,
    ``bytes_per_pass`` without the embedding; ``active``: share of the experts that a token uses, 1 if dense."""

    title: str
    format: str
    version: str
    weight_bytes: int
    bytes_per_pass: int
    vocabulary: int
    active: float = 1.0
    _filled = 0

    def fill(self, ids: list[int]) -> None:
        """Hold ``ids`` and nothing else. They begin as those of the last call did: what is held of them stays."""
        held = min(self._filled, len(ids))
        self.rollback(held)
        for i in range(held, len(ids), _CHUNK):
            self.forward(ids[i : i + _CHUNK], every=False)
        self._filled = len(ids)

    @abstractmethod
    def forward(self, ids: list[int], every: bool) -> np.ndarray:
        """Append tokens; returns the logits of ``every`` one of them, or of the last, float32 [any, V]."""

    @abstractmethod
    def rollback(self, length: int) -> None:
        """Forget the tokens from ``length`` on."""


class LlamaCpp(Engine):
    """llama.cpp through its C interface, with its defaults but for one: weights are read, not mapped. A mapped file has
    small pages, which makes decoding slower, and counts as memory beside the copies laid out for the processor."""

    def __init__(self, setup: Setup) -> None:
        import gguf
        import llama_cpp

        self._api, self._length = llama_cpp, 0
        # llama.cpp takes a bare function; the object must live as long as the library.
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self._model = llama_cpp.llama_model_load_from_file(setup.model.encode(), model_parameters)
        if not self._model:
            raise UserError(f"{setup.model}: llama.cpp cannot load it; remove the file, it is written again")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 4096, _CHUNK, _CHUNK
        parameters.n_threads = parameters.n_threads_batch = setup.threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._batch = llama_cpp.llama_batch_init(_CHUNK, 0, 1)
        reader = gguf.GGUFReader(setup.model)
        sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
        tied = "output.weight" not in sizes
        self.weight_bytes = sum(sizes.values())
        self.bytes_per_pass = self.weight_bytes - (0 if tied else sizes["token_embd.weight"])
        fields = {name.partition(".")[2]: field for name, field in reader.fields.items()}
        self.vocabulary = int(fields["vocab_size"].contents())
        if "expert_count" in fields:
            self.active = fields["expert_used_count"].contents() / fields["expert_count"].contents()
        name, _, self.format = setup.peer.partition(":")
        self.title, self.version = f"llama.cpp {setup.peer}", f"llama-cpp-python {llama_cpp.__version__}"

    def forward(self, ids: list[int], every: bool) -> np.ndarray:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self._length + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, every or i == len(ids) - 1
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        self._length += len(ids)
        rows = len(ids) if every else 1
        logits = self._api.llama_get_logits(self._context)  # waits for the end
        return np.ctypeslib.as_array(logits, (rows, self.vocabulary))

    def rollback(self, length: int) -> None:
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), 0, length, -1)
        self._length = length


class Onnx(Engine):
    """The model as ONNX under ONNX Runtime, which computes all logits whatever is asked for."""

    def __init__(self, setup: Setup) -> None:
        from blockffn_mlc.onnx.export import WEIGHTS
        from blockffn_mlc.onnx.session import OnnxSession

        folder = Path(setup.model)
        config = json.loads((folder / "config.json").read_text())
        self._session, self._length = OnnxSession(folder, setup.threads), 0
        self.weight_bytes = (folder / WEIGHTS).stat().st_size
        self.vocabulary, self.format = config["vocab_size"], setup.peer.partition(":")[2]
        embedding = self.vocabulary * config["hidden_size"] * (2 if self.format == "q0f16" else 4)
        # ONNX Runtime computes with float32, whatever is stored.
        self.bytes_per_pass = (self.weight_bytes - (0 if config["tie_word_embeddings"] else embedding)) * (
            2 if self.format == "q0f16" else 1)
        self.title, self.version = f"ONNX Runtime {self.format}", f"onnxruntime {version('onnxruntime')}"

    def forward(self, ids: list[int], every: bool) -> np.ndarray:
        return self._session.forward([ids])[0][0]

    def rollback(self, length: int) -> None:
        self._session.rollback(length)


class Torch(Engine):
    """The PyTorch reference in float32: dense and without a cache, every pass computes all tokens so far."""

    def __init__(self, setup: Setup) -> None:
        import torch

        from blockffn_mlc.reference import Reference
        from blockffn_mlc.sources import open_model

        torch.set_num_threads(setup.threads)
        model = open_model(setup.model)
        tensors = {name: torch.from_numpy(model.weights.read(name)) for name in model.weights.expected}
        self._torch, self._reference, self._ids = torch, Reference(model.config, tensors), []
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
        tied = model.config.tie_word_embeddings
        self.bytes_per_pass = self.weight_bytes - (0 if tied else tensors["model.embed_tokens.weight"].nbytes)
        self.vocabulary, self.format = model.config.vocab_size, "float32"
        self.title, self.version = "PyTorch reference", f"torch {torch.__version__}"

    def forward(self, ids: list[int], every: bool) -> np.ndarray:
        self._ids += ids
        with self._torch.no_grad():
            logits = self._reference.forward(self._torch.tensor([self._ids])).logits[0]
        return logits[-len(ids) if every else -1 :].numpy()

    def rollback(self, length: int) -> None:
        del self._ids[length:]
