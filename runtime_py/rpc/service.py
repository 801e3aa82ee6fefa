"""What a server does for a connection: keep files, and run tasks in measuring processes of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from blockffn_mlc.errors import UserError, first_line

from ..bench import measure
from ..bench.measure import Setup
from ..bench.rounds import depend_on_parent, process
from ..engine import Engine
from ..selftest.checks import report
from ..tvm_runtime import load_runtime
from .codec import decode, encode
from .storage import Storage

VERSION = 2  # of these functions
PREFIX = "blockffn.rpc."


def verify(setup: Setup) -> dict[str, Any]:
    """What ``verify`` says of an artifact on its device."""
    return report(Engine.load(setup.artifact, setup.threads, device=setup.device))


TASKS = {task.__name__: task for task in (measure.surroundings, measure.prepare, measure.measure, measure.conclude,
                                      verify)}


class Service:
    """``answer`` is what clients call. Use it as a context manager: its processes end with it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._processes: dict[Setup, Callable[..., Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def register(self) -> None:
        """Make its functions known to TVM, for whom the connection is served."""
        ffi = load_runtime()
        ffi.register_global_func(f"{PREFIX}version", lambda: VERSION, override=True)
        ffi.register_global_func(f"{PREFIX}append", self._append, override=True)
        ffi.register_global_func(f"{PREFIX}call", self.answer, override=True)

    def answer(self, request: str) -> str:
        """``[name, arguments]`` -> ``{"result"}``, or ``{"error"}``: a sentence for who asked."""
        return _answered(lambda: self._run(*decode(request)))

    def _append(self, digest: str, offset: int, data: bytes) -> str:
        return _answered(lambda: self._storage.append(digest, offset, data))

    def _run(self, name: str, arguments: list[Any]) -> Any:
        if name in TASKS:
            setup, *others = arguments
            return self._process(setup)(TASKS[name], *others)
        if name == "assemble":
            return str(self._storage.assemble(*arguments))
        if name in ("held", "finish"):
            return getattr(self._storage, name)(*arguments)
        raise UserError(f"unknown request {name!r:.80}; server and client are of different versions")

    def _process(self, setup: Setup) -> Callable[..., Any]:
        if setup not in self._processes:
            self._processes[setup] = self._stack.enter_context(process(setup))
        return self._processes[setup]


def _answered(run: Callable[[], Any]) -> str:
    """What ``run`` returns or how it failed, for who asked: the connection, and what else it can do, stay."""
    try:
        return encode({"result": run()})
    except UserError as error:
        return encode({"error": str(error)})
    except Exception as error:
        return encode({"error": f"failed there: {type(error).__name__}: {first_line(error)}"})


def serve(connection: Any, folder: Path) -> None:
    """Answer one client until it leaves; ``connection``: its socket, behind the handshake."""
    depend_on_parent()
    with Service(Storage(folder)) as service:
        service.register()
        load_runtime().get_global_func("rpc.ServerLoop")(connection.detach())
