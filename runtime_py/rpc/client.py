"""A connection to a server: files go there once, tasks run there, results come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from ..bench.measure import Setup
from .codec import decode, encode
from .connection import Connection
from .files import artifact_files
from .phone import Phone
from .service import PREFIX, VERSION
from .storage import sha256
from .wire import Address

_PIECE = 4 << 20  # bytes sent at a time


def connect(address: Address, folder: str, note: Callable[[str], None] = lambda text: None) -> Client | Phone:
    """A client of the server at ``address``; ``note`` is told what takes long. ``folder``: where a server of TVM's own,
    which lacks this project's functions, keeps files. Raises UserError."""
    connection = Connection(address, note)
    try:
        ours = connection.function(f"{PREFIX}version") is not None
        return Client(connection) if ours else Phone(connection, folder)
    except BaseException:
        connection.close()
        raise


class Client:
    """Calls a server of this package, which serves nobody else meanwhile: use it as a context manager. Raises UserError
    where there is none, or it breaks off."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._address = connection, connection.address
        self._functions = {name: connection.function(PREFIX + name) for name in ("version", "append", "call")}
        with connection.told():
            version = self._functions["version"]()
        if version != VERSION:
            raise UserError(f"{self._address}: its server speaks version {version}, this is {VERSION}; install the "
                            "same version of this project on both")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave, also in the middle of a call."""
        self._connection.close()
        self._functions.clear()

    def call(self, name: str, *arguments: Any) -> Any:
        """Run a request (``Service``). Raises UserError with what the server says."""
        return self._answer("call", encode([name, arguments]))

    def send(self, artifact: Artifact, progress: Callable[[str], None]) -> str:
        """Put an artifact into the server's storage: what is not there already. Returns its folder there."""
        if ":" in artifact.name or "\\" in artifact.name:
            raise UserError(f"{artifact.path}: its name cannot be one on every server; rename it, without : and \\")
        files = {name: sha256(artifact.path / name) for name in artifact_files(artifact)}
        names = {digest: name for name, digest in files.items()}  # equal files are sent once
        held = {digest: count for digest in names if (count := self.call("held", digest)) >= 0}
        sizes = {digest: (artifact.path / names[digest]).stat().st_size for digest in held}
        total = sum(sizes[digest] - count for digest, count in held.items())
        if held:
            progress(f"send {len(held)} of {len(names)} files of {artifact.name}, {total / 1e6:.1f} MB")
        for digest, count in held.items():
            if count > sizes[digest]:
                raise UserError(f"{self._address}: holds more of {names[digest]} than there is; empty its storage")
            with (artifact.path / names[digest]).open("rb") as file:
                offset = file.seek(count)
                while piece := file.read(_PIECE):
                    self._answer("append", digest, offset, piece)
                    offset += len(piece)
            self.call("finish", digest)
        return self.call("assemble", artifact.name, files)

    def process(self, setup: Setup, folder: str) -> Callable[..., Any]:
        """As ``rounds.process``, there: calls ``task(setup, *arguments)`` by the task's name."""
        there = replace(setup, artifact=folder)
        return lambda task, *arguments: self.call(task.__name__, there, *arguments)

    def _answer(self, function: str, *arguments: Any) -> Any:
        with self._connection.told():
            answer = decode(self._functions[function](*arguments))
        if "error" in answer:
            raise UserError(f"{self._address}: {answer['error']}")
        return answer["result"]
