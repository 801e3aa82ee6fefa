"""A connection to a server of TVM's RPC, whoever wrote it, and what hinders one."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any

from blockffn_mlc.errors import UserError, first_line

from ..tvm_runtime import load_runtime
from . import wire
from .wire import Address

_TIMEOUT = 10.0  # seconds that a host has to take a connection, and a tracker for an answer
_PATIENCE = 5.0  # seconds of silence after which the user is told what is waited for
_DESCRIPTORS = "/dev/fd"  # where the system lists them
_MEANINGS = {  # of what TVM says
    "Failed to load dynamic shared library": "the artifact is built for another processor or system than the server's",
    "loader of that name is not registered": "its server is built without the devices that the artifact is for"}
_REMOTE, _MISSING = "Error caught from RPC call", "has no function "  # what TVM says
_SERVER = "is 'python -m runtime_py rpc-server' running there, or a phone's server?"


class Connection:
    """``session``: TVM's, which has functions of the server by their names."""

    def __init__(self, address: Address, note: Callable[[str], None]) -> None:
        """Waits, and says so, while the server serves another client. Raises UserError."""
        self.address, place = address, str(address)
        if address.tracker:
            host, port, key = _find(address, note)
            place = f"{address}: {host}:{port}"
        else:
            host, port, key = _reach(address), address.port, address.key
        with _told(note, f"{place} does not answer yet: a server serves one client at a time, and may be busy with "
                   "another; waiting (Ctrl-C ends it)"):
            try:
                self.session: Any = load_runtime().get_global_func("rpc.Connect")(host, port, key, False)
            except RuntimeError as error:
                raise UserError(f"{place}: {_reason(error)}") from None
        self._socket = _socket_to(host, port)
        if self._socket is not None:
            wire.keep_alive(self._socket)

    def function(self, name: str) -> Any:
        """A function of the server, None where it has none of that name. Raises UserError for a broken connection."""
        with self.told():
            try:
                return self.session[name]
            except AttributeError:
                return None

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turns what TVM raises in the block into a UserError."""
        try:
            yield
        except RuntimeError as error:
            text = str(error).strip()
            if _REMOTE in text:
                reason = next((meaning for words, meaning in _MEANINGS.items() if words in text), "failed there")
                problem = f"{reason}: {text.splitlines()[-1].strip()}"
            else:
                problem = (f"the connection broke off ({first_line(error)}); what was sent is kept there: start again")
            raise UserError(f"{self.address}: {problem}") from None
        except AttributeError as error:
            if _MISSING not in str(error):
                raise
            raise UserError(f"{self.address}: its server lacks {str(error).rpartition(_MISSING)[2]}, a function of "
                            "TVM's runtime; build the server as the artifact's README.md describes") from None

    def close(self) -> None:
        """Leave at once, also in the middle of a call: what TVM still holds of the server is let go unasked."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        with suppress(RuntimeError):
            self.session["CloseRPCConnection"]()


def is_loopback(host: str) -> bool:
    """Whether a host's address is one of this machine alone."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:
        return False


def _reach(address: Address) -> str:
    """The host's numeric address, where something listens at the port."""
    try:
        with socket.create_connection((address.host, address.port), _TIMEOUT) as connection:
            return connection.getpeername()[0]
    except TimeoutError:
        raise UserError(f"{address}: does not answer; is the host right, and no firewall between?") from None
    except OSError as error:
        raise UserError(f"{address}: cannot connect ({error.strerror or error}); {_SERVER}") from None


def _find(address: Address, note: Callable[[str], None]) -> tuple[str, int, str]:
    """Host, port and key of a server that a tracker knows by ``address.key``; waits until one is free."""
    try:
        with wire.connect_tracker(address.host, address.port, _TIMEOUT) as connection, \
                _told(note, f"{address}: the tracker has no free server of that key; waiting (Ctrl-C ends it)"):
            connection.settimeout(None)
            code, found = wire.ask_tracker(connection, wire.REQUEST, address.key, "", 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{address}: the tracker cannot be asked ({error})") from None
    if code != wire.SUCCESS:
        raise UserError(f"{address}: the tracker found no server ({found})")
    host, port, key = found
    return address.host if is_loopback(host) else host, port, key  # loopback: it is on the tracker's machine


@contextmanager
def _told(note: Callable[[str], None], text: str) -> Iterator[None]:
    """``note`` a text when the block takes long."""
    timer = Timer(_PATIENCE, note, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _reason(error: RuntimeError) -> str:
    """What TVM's client says of a server that it could not connect to."""
    text = str(error)
    if "matches key=" in text:
        return "its key is another; name it as HOST:PORT/KEY"
    if "is not TVM RPC server" in text or "RecvAll" in text:
        return f"what listens there is no server of TVM's RPC, or has none behind it (adb forward); {_SERVER}"
    if "protocol version mismatch" in text:
        return "its TVM is of another version; install the same on both"
    return f"cannot connect ({first_line(error)}); {_SERVER}"


def _socket_to(host: str, port: int) -> socket.socket | None:
    """This process's socket that is connected there, which TVM does not hand out; None where the system tells none."""
    address = socket.getaddrinfo(host, port)[0][4][0]
    for name in os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ():
        with suppress(OSError):  # closed since, or not connected
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    if found.getpeername()[:2] == (address, port):
                        return found.dup()
    return None
