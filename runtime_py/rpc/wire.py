"""TVM's RPC before functions are called: handshakes with a key, and the messages of its tracker (tvm/rpc/base.py)."""

from __future__ import annotations

import json
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

from blockffn_mlc.errors import UserError

MAGIC, TRACKER_MAGIC = 0xFF271, 0x2F271
ACCEPTED, WRONG_KEY = MAGIC, MAGIC + 2
SUCCESS, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING_KEYS = 0, 3, 4, 5, 6, 7
MAX_MESSAGE = 1 << 16  # bytes of a key or a tracker's message
# Who is gone without a word is noticed after 30 + 3 * 10 seconds, or as many ms that what was sent is not acknowledged.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000))


@dataclass(frozen=True)
class Address:
    """Of a server, or of a tracker that knows servers by ``key``."""

    host: str
    port: int
    key: str = ""
    tracker: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """[tracker:]HOST:PORT[/KEY]. Raises UserError."""
        match = re.fullmatch(r"(tracker:)?([^:/\s]+):(\d{1,5})(?:/(\S+))?", text)
        if match is None or int(match[3]) > 65535 or (match[1] and not match[4]):
            raise UserError(f"{text!r}: expected HOST:PORT, HOST:PORT/KEY or tracker:HOST:PORT/KEY")
        return cls(match[2], int(match[3]), match[4] or "", bool(match[1]))

    def __str__(self) -> str:
        return f"{'tracker:' * self.tracker}{self.host}:{self.port}" + (f"/{self.key}" if self.key else "")


def receive(connection: socket.socket, count: int) -> bytes:
    """``count`` bytes. Raises ConnectionError when the other side leaves before."""
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("the other side closed the connection")
        data += piece
    return data


def receive_int(connection: socket.socket) -> int:
    return struct.unpack("<i", receive(connection, 4))[0]


def receive_text(connection: socket.socket) -> str:
    """A text behind its length. Raises ConnectionError for one that is too long, or none."""
    size = receive_int(connection)
    if not 0 <= size <= MAX_MESSAGE:
        raise ConnectionError(f"announced a message of {size} bytes")
    return receive(connection, size).decode("utf-8", errors="replace")


def send_text(connection: socket.socket, text: str) -> None:
    data = text.encode()
    connection.sendall(struct.pack("<i", len(data)) + data)


def send_int(connection: socket.socket, number: int) -> None:
    connection.sendall(struct.pack("<i", number))


def keep_alive(connection: socket.socket) -> None:
    """Have the system notice when the other side is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def connect_tracker(host: str, port: int, timeout: float) -> socket.socket:
    """A connection to a tracker. Raises OSError where there is none."""
    connection = socket.create_connection((host, port), timeout)
    send_int(connection, TRACKER_MAGIC)
    if receive_int(connection) != TRACKER_MAGIC:
        raise ConnectionError(f"{host}:{port} is no tracker")
    return connection


def ask_tracker(connection: socket.socket, *message: Any) -> Any:
    """A tracker's answer."""
    send_text(connection, json.dumps(message))
    return json.loads(receive_text(connection))
