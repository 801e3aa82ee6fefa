"""Server processes for tests."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

from runtime_py.rpc import connection
from runtime_py.rpc.client import connect

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


def interrupted(*arguments):
    """What a command says that waits before long, then Ctrl-C: its exit code and its stderr. A process of its own,
    which ends whatever happens; a signal before the system call that waits is lost, so there may be several."""
    program = ("import signal, sys; from runtime_py.rpc import connection; connection._PATIENCE = 0.2; "
               "signal.signal(signal.SIGINT, signal.default_int_handler); "
               "from runtime_py.cli import main; sys.exit(main(sys.argv[1:]))")
    with subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT, stderr=subprocess.PIPE,
                          text=True) as run:
        try:
            said = run.stderr.readline()
            for _ in range(20):
                run.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    return run.wait(3), said + run.stderr.read()
        finally:
            run.kill()
    raise AssertionError(f"goes on after Ctrl-C, behind: {said}")


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


def until(condition):
    """Wait for it, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def looked_after(connection):
    """Whether the system notices that the other side of a socket is gone, also while something is sent there."""
    return (connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)) == (1, 30, 60_000)


def wait_for_a_turn(address, monkeypatch):
    """A second client of a server waits until the first leaves, and is told."""
    monkeypatch.setattr(connection, "_PATIENCE", 0.2)
    said, got = [], []
    first = connect(address, "/")
    second = threading.Thread(target=lambda: got.append(connection.Connection(address, said.append)))
    second.start()
    until(lambda: said)
    assert said == [f"{address} does not answer yet: a server serves one client at a time, and may be busy with "
                    "another; waiting (Ctrl-C ends it)"] and not got
    first.close()
    second.join(60)
    assert got[0].function("tvm.rpc.server.upload") is not None
    got[0].close()
