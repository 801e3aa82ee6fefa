"""A connection to one of TVM's own servers, which has no Python: this computer does what Python does elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..bench.measure import CALLS, Setup, Subject
from ..devices import kind_of_target
from ..engine import Engine
from ..library import Library
from ..selftest.checks import report
from ..stats import Stopwatch
from ..weights import INDEX
from .connection import Connection
from .device import RemoteDevice
from .files import Uploads


class Phone:
    """Has what ``Client`` has for the commands. ``folder``: an absolute one on the phone, which exists. Raises
    UserError for what such a server cannot do."""

    def __init__(self, connection: Connection, folder: str) -> None:
        self._connection, self._session, self._folder = connection, connection.session, folder
        self._subjects: dict[Setup, Subject] = {}
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
        with self._connection.told():
            library, self._indexes[artifact.path] = Uploads(self._session, self._folder).send(artifact, progress)
        return library

    def process(self, setup: Setup, library: str) -> Callable[..., Any]:
        """As ``rounds.process``: calls ``task(setup, *arguments)`` by the task's name."""
        return partial(self._run, setup, library)

    def _run(self, setup: Setup, library: str, task: Callable[..., Any], *arguments: Any) -> Any:
        if task.__name__ == "surroundings":
            return {"processors": None, "busy_before": None, "timed": CALLS}
        if task.__name__ == "conclude":
            return {"peak_memory_bytes": None, "roof_gb_per_s": None, "roof_gop_per_s": None}
        with self._connection.told():
            if task.__name__ == "verify":
                found = report(self._engine(setup, library))
                self._session["ffi.Shape"](0)  # raises where the connection broke, which is no kernel's fault
                return found
            if setup not in self._subjects:
                engine = self._engine(setup, library)
                if engine.device.kind == "cpu":
                    raise UserError(f"{setup.artifact}: built for target {engine.artifact.target!r}; a server of TVM's "
                                    "own times what is built for a phone's or another device, not for a processor; "
                                    "start 'python -m runtime_py rpc-server' there")
                self._subjects[setup] = Subject(setup, engine)
            return getattr(self._subjects[setup], task.__name__)(*arguments)

    def _engine(self, setup: Setup, library: str) -> Engine:
        """An artifact in the phone's memory."""
        clock, artifact = Stopwatch(), Artifact.open(setup.artifact, mmap=True)
        kind, _, index = (setup.device or kind_of_target(artifact.target) or "").partition(":")
        if kind != kind_of_target(artifact.target) or not (index or "0").isdecimal():
            raise UserError(f"--device {setup.device}: {artifact.path} is built for target {artifact.target!r}; "
                            "expected a device of its kind")
        if setup.threads is not None:
            raise UserError("--threads: a server of TVM's own decides by itself; leave it out")
        self._session["tvm.rpc.server.upload"](f"{self._folder}/{INDEX}", self._indexes[artifact.path])
        device = RemoteDevice(self._session, kind, int(index or 0), library, self._folder)
        return Engine(artifact, Library(artifact, device), device, 1, clock.seconds)
