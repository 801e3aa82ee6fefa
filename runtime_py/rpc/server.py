"""A server of TVM's RPC with our functions: one client at a time, each in a process of its own."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

from blockffn_mlc.errors import UserError

from . import wire
from .service import serve
from .wire import Address

_HANDSHAKE = 10.0  # seconds that a client has for it, and a tracker for an answer
_GRACE = 2.0  # seconds that a process has to end when its client left
_PERIOD = 2.0  # seconds between looks at a tracker
_UNUSED = 4  # such looks after which a key that the tracker gave away is replaced


class Server:
    """Listens from the beginning. ``key``: what clients have to know; ``tracker``: where to register, if anywhere."""

    def __init__(self, host: str, port: int, key: str, storage: Path, tracker: Address | None,
                 note: Callable[[str], None]) -> None:
        """Port 0: any that is free. Raises UserError where it cannot listen."""
        self._key, self._storage, self._tracker, self._note = key, storage, tracker, note
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise UserError(f"{host}:{port}: cannot listen there ({error.strerror or error})") from None
        self.host, self.port = self._listener.getsockname()[:2]

    def run(self) -> None:
        """Serve clients, one after the other, for ever."""
        registration = _Registration(self._tracker, self._key, self.port, self._note) if self._tracker else None
        with self._listener:
            while True:
                key = registration.wait(self._listener) if registration else self._key
                connection, (host, *_) = self._listener.accept()
                with connection:
                    if self._welcome(connection, host, key):
                        self._serve(connection, host)
                        if registration:
                            registration.renew()

    def _welcome(self, connection: socket.socket, host: str, key: str) -> bool:
        """The handshake: whether the client knows the key."""
        connection.settimeout(_HANDSHAKE)
        try:
            if wire.receive_int(connection) != wire.MAGIC:
                return False
            words = wire.receive_text(connection).split()
            if words[:1] != [f"client:{key}"]:
                wire.send_int(connection, wire.WRONG_KEY)
                self._note(f"{host}: refused, its key is another")
                return False
            wire.send_int(connection, wire.ACCEPTED)
            wire.send_text(connection, f"server:{self._key}")
            connection.settimeout(None)
            wire.keep_alive(connection)
            return True
        except OSError:
            return False

    def _serve(self, connection: socket.socket, host: str) -> None:
        self._note(f"{host}: connected")
        process = get_context("spawn").Process(target=serve, args=(connection, self._storage))
        process.start()
        try:
            if hasattr(select, "POLLRDHUP"):
                ends = select.poll()
                ends.register(process.sentinel, select.POLLIN)
                ends.register(connection, select.POLLRDHUP)
                ends.poll()
                process.join(_GRACE)
            else:
                process.join()
        finally:
            process.kill()  # its client left in the middle of a call, or the server is to end
            connection.close()  # the process had its own
            process.join()
        self._note(f"{host}: left" + (f" (exit code {process.exitcode})" if process.exitcode else ""))


class _Registration:
    """An entry at TVM's tracker: it gives clients a key that holds for one connection."""

    def __init__(self, tracker: Address, name: str, port: int, note: Callable[[str], None]) -> None:
        self._tracker, self._name, self._port, self._note = tracker, name, port, note
        self._connection: socket.socket | None = None
        self._key, self._unused, self._reachable = "", 0, True

    def wait(self, listener: socket.socket) -> str:
        """Until somebody connects; the key that holds then. A tracker that is gone is looked for again and again."""
        while True:
            try:
                if self._connection is None:
                    self._register()
                if select.select([listener], [], [], _PERIOD)[0]:
                    return self._key
                pending = wire.ask_tracker(self._connection, wire.PENDING_KEYS)
                self._unused = 0 if self._key in pending else self._unused + 1
                if self._unused > _UNUSED:
                    self._put()
            except (OSError, ValueError) as error:
                self._lost(error)
                if select.select([listener], [], [], _PERIOD)[0]:
                    return self._key

    def renew(self) -> None:
        """A connection ended: the tracker may send the next client."""
        try:
            if self._connection is not None:
                self._put()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _register(self) -> None:
        self._connection = wire.connect_tracker(self._tracker.host, self._tracker.port, _HANDSHAKE)
        info = {"key": f"server:{self._name}", "addr": [None, self._port]}
        wire.ask_tracker(self._connection, wire.UPDATE_INFO, info)
        self._put()
        self._note(f"registered at {self._tracker.host}:{self._tracker.port} as {self._name!r}")
        self._reachable = True

    def _put(self) -> None:
        self._key, self._unused = f"{self._name}:{random.SystemRandom().random()}", 0
        wire.ask_tracker(self._connection, wire.PUT, self._name, [self._port, self._key], None)

    def _lost(self, error: Exception) -> None:
        if self._reachable:
            self._note(f"tracker {self._tracker.host}:{self._tracker.port}: {error}; trying again")
        self._reachable = False
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
        self._connection = None
