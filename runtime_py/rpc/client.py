"""A connection to a server: files go there once, tasks run there, results come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from blockffn_mlc.errors import UserError, first_line

from ..artifact import Artifact
from ..bench.measure import Setup
from ..tvm_runtime import load_runtime
from . import wire
from .codec import decode, encode
from .files import artifact_files
from .phone import Phone
from .service import PREFIX, VERSION
from .storage import sha256
from .wire import Address

_PIECE = 4 << 20  # bytes sent at a time
_TIMEOUT = 10.0  # seconds that a tracker has for an answer


def connect(address: Address, folder: str) -> Client | Phone:
    """A client of the server at ``address``. ``folder``: where a server of TVM's own keeps files. Raises UserError."""
    host, port, key = _find(address) if address.tracker else (address.host, address.port, address.key)
    try:
        session = load_runtime().get_global_func("rpc.Connect")(host, port, key, False)
    except RuntimeError as error:
        raise UserError(f"{address}: {_reason(error, 'cannot connect')}") from None
    try:
        functions = {name: session[PREFIX + name] for name in ("version", "append", "call")}
    except (AttributeError, RuntimeError):
        return Phone(session, str(address), folder)
    return Client(functions, address)


class Client:
    """Calls a server of this package, which serves nobody else meanwhile: use it as a context manager. Raises UserError
    where there is none, or it breaks off."""

    def __init__(self, functions: dict[str, Any], address: Address) -> None:
        self._functions, self._address = functions, address
        version = functions["version"]()
        if version != VERSION:
            raise UserError(f"{address}: its server speaks version {version}, this is {VERSION}; install the same "
                            "version of this project on both")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave: TVM closes the connection when nothing of it is held any more."""
        self._functions.clear()

    def call(self, name: str, *arguments: Any) -> Any:
        """Run a request (``Service``). Raises UserError with what the server says."""
        return self._answer("call", encode([name, arguments]))

    def send(self, artifact: Artifact, progress: Callable[[str], None]) -> str:
        """Put an artifact into the server's storage: what is not there already. Returns its folder there."""
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
        try:
            answer = decode(self._functions[function](*arguments))
        except RuntimeError as error:
            raise UserError(f"{self._address}: the connection broke off ({first_line(error)}); what was sent is kept "
                            "there: start again") from None
        if "error" in answer:
            raise UserError(f"{self._address}: {answer['error']}")
        return answer["result"]


def _find(address: Address) -> tuple[str, int, str]:
    """Host, port and key of a server that a tracker knows by ``address.key``; waits until one is free."""
    try:
        with wire.connect_tracker(address.host, address.port, _TIMEOUT) as connection:
            connection.settimeout(None)
            code, found = wire.ask_tracker(connection, wire.REQUEST, address.key, "", 1)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{address}: the tracker cannot be asked ({error})") from None
    if code != wire.SUCCESS:
        raise UserError(f"{address}: the tracker found no server ({found})")
    host, port, key = found
    return host, port, key


def _reason(error: RuntimeError, otherwise: str) -> str:
    text = str(error)
    return ("its key is another; name it as HOST:PORT/KEY" if "matches key=" in text else
            f"{otherwise} ({first_line(error)}); is 'python -m runtime_py rpc-server' running there?")
