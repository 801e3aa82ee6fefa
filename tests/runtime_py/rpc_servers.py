"""Server processes for tests."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]


@contextmanager
def rpc_server(storage, *options):
    """A server process on loopback. Its ``address`` is HOST:PORT."""
    command = [sys.executable, "-m", "runtime_py", "rpc-server", "--port", "0", "--storage", str(storage), *options]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TVM_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as server:
        try:
            server.address = server.stdout.readline().strip()
            assert server.address, server.stderr.read()
            yield server
        finally:
            server.kill()


@contextmanager
def phone(kind):
    """A server on loopback with TVM's own functions alone. Its ``address`` is HOST:PORT; ``end()`` ends it at once, in
    the middle of a call as well."""
    with subprocess.Popen([sys.executable, HERE / "devices" / "rpc_server.py", kind], stdout=subprocess.PIPE, text=True,
                          start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)}) as server:
        def end():
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # the process of the client as well

        try:
            server.address, server.end = f"127.0.0.1:{server.stdout.readline().strip()}", end
            yield server
        finally:
            end()


@contextmanager
def cable(address, limit=1 << 60, change=(b"", b"")):
    """A way to ``address`` that is cut when a client has sent ``limit`` bytes; ``change``: what becomes what in these.
    A process of its own, since TVM's client keeps Python's lock in some of its calls."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = get_context("spawn").Process(target=_relay, args=(listener, address, limit, change), daemon=True)
        process.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        process.kill()


def _relay(listener, address, limit, change):
    def forward(source, target, left, change):
        with suppress(OSError):
            while left > 0 and (data := source.recv(min(left, 4096))):
                target.sendall(data.replace(*change) if change[0] else data)
                left -= len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    host, port = address.split(":")
    while True:
        near, _ = listener.accept()
        with near, socket.create_connection((host, int(port))) as far:
            back = threading.Thread(target=forward, args=(far, near, 1 << 60, (b"", b"")))
            back.start()
            forward(near, far, limit, change)
            back.join()


def children(pid):
    """Processes that process ``pid`` started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
