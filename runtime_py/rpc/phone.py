"""A connection to one of TVM's own servers, which has no Python: passes are timed there by TVM's evaluator."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..bench.accounting import Accounts, Sample
from ..bench.calls import Description
from ..bench.identity import artifact_facts, source_revision
from ..bench.measure import Setup
from ..bench.passes import FUNCTIONS
from ..bench.replay import causal_arguments
from ..bench.tasks import GENERATE, SPECULATIVE, Task
from ..bench.text import Text
from ..devices import kind_of_target
from ..stats import Stopwatch
from ..tvm_runtime import load_runtime
from ..weights import INDEX
from .connection import Connection
from .files import Uploads

_NAME, _CLOCK, _DRIVER = 5, 6, 12  # of TVM's DeviceAttrKind
_SESSION_CODES = 128  # a connection's devices have codes beyond those of its number times this
_NAIVE_ALLOCATOR, _CPU = 1, 1
_PASS = "blockffn_pass"
# One repeat of one call: number, repeat, min_repeat_ms, zero-time limit, cooldown ms and repeats, cache flush, before.
_ONCE = 1, 1, 0, 100, 0, 1, 0, ""


class Phone:
    """Has what ``Client`` has for the benchmark. ``folder``: an absolute one on the phone, which exists. Raises
    UserError for what such a server cannot do."""

    def __init__(self, connection: Connection, folder: str) -> None:
        self._connection, self._session, self._folder = connection, connection.session, folder
        self._subjects: dict[Setup, _Subject] = {}
        self._indexes: dict[Path, bytes] = {}  # by artifact: of its weights, as they are named there

    def __enter__(self) -> Phone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave, also in the middle of a call."""
        self._connection.close()
        self._subjects.clear()

    def send(self, artifact: Artifact, progress: Callable[[str], None]) -> str:
        """Put library and weights into the phone's folder: what is not there already. Returns the library's path."""
        if kind_of_target(artifact.target) in (None, "cpu"):
            raise UserError(f"{artifact.path}: built for target {artifact.target!r}; a server of TVM's own runs what "
                            "is built for a phone's or another device, not for a processor")
        with self._connection.told():
            library, self._indexes[artifact.path] = Uploads(self._session, self._folder).send(artifact, progress)
        return library

    def process(self, setup: Setup, library: str) -> Callable[..., Any]:
        """As ``rounds.process``: calls ``task(setup, *arguments)`` by the task's name."""
        return partial(self._run, setup, library)

    def _run(self, setup: Setup, library: str, task: Callable[..., Any], *arguments: Any) -> Any:
        if task.__name__ == "surroundings":
            return {"processors": None, "busy_before": None}
        if task.__name__ == "peak":
            return None
        with self._connection.told():
            if setup not in self._subjects:
                self._session["tvm.rpc.server.upload"](f"{self._folder}/{INDEX}", self._indexes[Path(setup.artifact)])
                self._subjects[setup] = _Subject(self._session, self._folder, library, setup)
            return getattr(self._subjects[setup], task.__name__)(*arguments)


class _Subject:
    """An artifact in the phone's memory, as ``measure.Subject`` here."""

    def __init__(self, session: Any, folder: str, library: str, setup: Setup) -> None:
        self._artifact, self._session, self._ffi = Artifact.open(setup.artifact), session, load_runtime()
        kind, _, index = (setup.device or kind_of_target(self._artifact.target)).partition(":")
        if kind != kind_of_target(self._artifact.target) or not (index or "0").isdecimal():
            raise UserError(f"--device {setup.device}: {self._artifact.path} is built for target "
                            f"{self._artifact.target!r}; expected a device of its kind")
        if setup.threads is not None:
            raise UserError("--threads: a server of TVM's own decides by itself; leave it out")
        clock = Stopwatch()
        self._accounts = Accounts(self._artifact, Description.load(self._artifact.path))
        self._text = Text.of(self._artifact)
        self._kind, self._index = kind, int(index or 0)
        code = int(self._ffi.device(kind, 0).dlpack_device_type())
        self._code = code + (self._global("rpc.SessTableIndex")(session) + 1) * _SESSION_CODES
        self._device = self._ffi.device(self._code, self._index)
        self._vm = self._global("rpc.LoadRemoteModule")(session, library)["vm_load_executable"]()
        self._vm["vm_initialization"](code, self._index, _NAIVE_ALLOCATOR, _CPU, 0, _NAIVE_ALLOCATOR)
        session["vm.builtin.tensor_cache.load"](folder, code, self._index)
        self._named = session["vm.builtin.param_array_from_cache_by_name_unpacked"]
        self._params = self._named(*(param["name"] for param in json.loads(str(self._vm["_metadata"]()))["params"]))
        self._caches: dict[int, Any] = {}
        self._used: dict[tuple[int, int], np.ndarray] = {}
        self._load_seconds = clock.seconds

    def prepare(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """What a record says; fills a cache for every depth."""
        if any(task.mode == SPECULATIVE for task in tasks):
            raise UserError("--modes speculative: a server of TVM's own has nobody who drafts; choose others, or start "
                            "'python -m runtime_py rpc-server' there")
        clock = Stopwatch()
        self._scores(self._forward(self._text.part(0, 1), 0, 1, self._cache(0)))
        first = clock.seconds
        for depth in {task.depth for task in tasks}:
            self._cache(depth)
        attribute = self._global("runtime.GetDeviceAttr")
        name, kilohertz, driver = (attribute(self._code, self._index, kind) for kind in (_NAME, _CLOCK, _DRIVER))
        return artifact_facts(self._artifact) | {
            "device": f"{self._kind}:{self._index}", "device_name": name, "driver": driver,
            "clock_mhz": kilohertz / 1e3 if kilohertz else None, "processor": None, "system": None, "tvm": None,
            "source": source_revision(), "threads": 1, "text": self._text.name, "load_s": self._load_seconds,
            "first_pass_s": first, "draft": None}

    def measure(self, task: Task, turn: int) -> Sample:
        """Time a task's passes, one by one."""
        caches, size = self._cache(task.depth), self._artifact.prefill_chunk_size
        decodes = task.kind == GENERATE
        ids = self._text.part(task.depth + (0 if decodes else turn * task.tokens), task.tokens)
        step = 1 if decodes else size
        parts = [(start, ids[start:start + step]) for start in range(0, len(ids), step)]
        seconds, scores = 0.0, []
        for start, part in parts:
            arguments = self._arguments(part, task.depth + start, self._accounts.rows(task, len(part)), caches)
            seconds += self._timed(FUNCTIONS[task.mode], arguments)
            if not decodes:
                scores.append(self._scores(self._vm["forward"](*arguments)))
        if not decodes:
            return self._accounts.reading(task, seconds, scores)
        key = task.depth, task.tokens
        if key not in self._used:
            found = [self._scores(self._forward(part, task.depth + start, 1, caches)) for start, part in parts]
            self._used[key] = np.concatenate([np.stack(layers) for layers in found], axis=1) != 0
        return self._accounts.decoding(task, seconds, self._used[key])

    def _timed(self, function: str, arguments: Sequence[Any]) -> float:
        """Seconds of a call by the phone's clock, until the device is done; a call before warms up."""
        self._vm["save_function"](function, _PASS, False, *arguments)
        timed = self._global("runtime.RPCTimeEvaluator")(self._vm, _PASS, self._code, self._index, *_ONCE)
        return struct.unpack("@d", bytes(timed()))[0]

    def _cache(self, depth: int) -> Any:
        """Of all layers, with ``depth`` tokens."""
        if depth not in self._caches:
            names = [f"cache.{depth}.{layer}" for layer in range(self._artifact.config.num_hidden_layers)]
            for name in names:
                empty = self._empty(self._artifact.cache_shape, self._artifact.cache_dtype)
                self._session["vm.builtin.tensor_cache.update"](name, empty, True)
            caches = self._caches[depth] = self._named(*names)
            for past in range(0, depth, self._artifact.prefill_chunk_size):
                count = min(self._artifact.prefill_chunk_size, depth - past)
                self._forward(self._text.part(past, count), past, 1, caches)
        return self._caches[depth]

    def _forward(self, ids: np.ndarray, past: int, rows: int, caches: Any) -> Any:
        return self._vm["forward"](*self._arguments(ids, past, rows, caches))

    def _arguments(self, ids: np.ndarray, past: int, rows: int, caches: Any) -> list[Any]:
        arrays = causal_arguments(len(ids), rows, past) | {"ids": ids}
        return [*map(self._tensor, arrays.values()), self._session["ffi.Shape"](past), caches, self._params]

    def _scores(self, result: Any) -> list[np.ndarray]:
        """Of every layer's router, float32 [n, E]."""
        item = self._session["ffi.ArrayGetItem"]
        layers = item(result, 1)
        return [self._array(item(layers, layer)) for layer in range(self._artifact.config.num_hidden_layers)]

    def _array(self, tensor: Any) -> np.ndarray:
        array = np.empty(tensor.shape, np.float32)
        self._global("runtime.TVMTensorCopyToBytes")(tensor, array.ctypes.data_as(c_void_p), array.nbytes)
        return array

    def _tensor(self, array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array, np.int32)
        tensor = self._empty(array.shape, "int32")
        self._global("runtime.TVMTensorCopyFromBytes")(tensor, array.ctypes.data_as(c_void_p), array.nbytes)
        return tensor

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._global("runtime.TVMTensorAllocWithScope")(self._ffi.Shape(shape), self._ffi.dtype(dtype),
                                                               self._device, None)

    def _global(self, name: str) -> Any:
        return self._ffi.get_global_func(name)
