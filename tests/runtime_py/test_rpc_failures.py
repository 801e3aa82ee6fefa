"""What hinders a client on the way to a server, and who waits for whom, with server processes on loopback."""

import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from rpc_servers import children, interrupted, looked_after, rpc_server, until, wait_for_a_turn
from toy import write_artifact

from blockffn_mlc.errors import UserError
from runtime_py.artifact import Artifact
from runtime_py.cli import main
from runtime_py.rpc import connection, wire
from runtime_py.rpc.client import connect
from runtime_py.rpc.server import Server
from runtime_py.rpc.storage import sha256
from runtime_py.rpc.wire import Address


@contextmanager
def listener(answer=None):
    """The address of something that is no server: it answers with bytes and hangs up, or (None) never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as held:
        def run():
            for _ in range(2):  # clients look first whether anything listens
                client = held.enter_context(server.accept()[0])
                with suppress(OSError):
                    if answer is not None:
                        client.sendall(answer)
                        client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield Address("127.0.0.1", server.getsockname()[1])


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_server(answer):
    with listener(answer) as address:
        with pytest.raises(UserError, match=f"{address}: what listens there is no server of TVM's RPC, or has none "
                                            "behind it"):
            connect(address, "/")


@pytest.mark.parametrize(("host", "message"), [
    ("127.0.0.1", "cannot connect .Connection refused.; is 'python -m runtime_py rpc-server' running there"),
    ("nowhere.invalid", "cannot connect .*is 'python -m runtime_py rpc-server' running there")])
def test_nobody_listens(host, message):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=f"{host}:{port}: {message}"):
        connect(Address(host, port), "/")


def test_a_host_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(connection, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        for _ in range(4):  # its queue is full: the system leaves others without an answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        address = Address(*server.getsockname())
        with pytest.raises(UserError, match=f"{address}: does not answer; is the host right, and no firewall between"):
            connect(address, "/")


def test_a_second_client_waits_and_is_told(tmp_path, monkeypatch):
    with rpc_server(tmp_path) as server:
        wait_for_a_turn(Address.parse(server.address), monkeypatch)


def test_who_leaves_in_the_middle_of_a_call_keeps_nobody_waiting(tmp_path):
    with rpc_server(tmp_path) as server:
        address = Address.parse(server.address)
        with connect(address, "/"):
            *_, serving = children(server.pid)
            os.kill(serving, signal.SIGSTOP)  # in a call that takes for ever
        until(lambda: serving not in children(server.pid))
        assert serving not in children(server.pid)
        with connect(address, "/") as client:
            assert client.call("held", "0" * 64) == 0


def test_the_system_looks_whether_a_client_is_there(tmp_path):
    server = Server("127.0.0.1", 0, "k", tmp_path, None, print)
    with server._listener, socket.create_connection((server.host, server.port)) as client:
        wire.send_int(client, wire.MAGIC)
        wire.send_text(client, "client:k")
        with server._listener.accept()[0] as served:
            assert server._welcome(served, "a client", "k") and looked_after(served)


def test_ctrl_c_at_the_server_ends_it_with_a_client(tmp_path):
    with rpc_server(tmp_path) as server, connect(Address.parse(server.address), "/") as client:
        assert client.call("held", "0" * 64) == 0
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
        with pytest.raises(UserError, match=f"{server.address}: the connection broke off"):
            client.call("held", "0" * 64)


def test_waiting_ends_with_ctrl_c(tmp_path):
    write_artifact(tmp_path / "toy")
    with listener() as address:
        code, said = interrupted("bench", str(tmp_path / "toy"), "--rpc", str(address))
    assert code == 130 and said == (f"{address} does not answer yet: a server serves one client at a time, and may be "
                                    "busy with another; waiting (Ctrl-C ends it)\n\ninterrupted\n")


def test_a_full_disk_and_a_name_that_is_none(tmp_path):
    write_artifact(tmp_path / "toy")
    (tmp_path / "toy" / "kernels.json").write_bytes(np.random.default_rng().bytes(1 << 16))
    artifact = Artifact.open(tmp_path / "toy")
    with rpc_server(tmp_path / "storage") as server, connect(Address.parse(server.address), "/") as client:
        partial = tmp_path / "storage" / "blobs" / f"{sha256(tmp_path / 'toy' / 'kernels.json')}.partial"
        partial.symlink_to("/dev/full")
        with pytest.raises(UserError, match="blobs: cannot be written there .No space left on device.; make room, or "
                                            "start the server with another --storage"):
            client.send(artifact, lambda text: None)
        assert not list((tmp_path / "storage" / "artifacts").iterdir())
        partial.unlink()
        first = client.send(artifact, lambda text: None)
        (tmp_path / "other").mkdir()
        write_artifact(tmp_path / "other" / "toy")
        second = client.send(Artifact.open(tmp_path / "other" / "toy"), lambda text: None)
        assert first != second and first.endswith("/toy") and second.endswith("/toy")
        (tmp_path / "toy").rename(tmp_path / "a:b")
        with pytest.raises(UserError, match="a:b: its name cannot be one on every server; rename it"):
            client.send(Artifact.open(tmp_path / "a:b"), lambda text: None)


def test_a_server_that_is_open_to_others_without_a_key_warns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Server, "run", lambda self: self._listener.close())
    arguments = ["rpc-server", "--port", "0", "--storage", str(tmp_path), "--host"]
    for options, warns in (("0.0.0.0",), True), (("0.0.0.0", "--key", "k"), False), (("127.0.0.1",), False):
        assert main([*arguments, *options]) == 0
        assert ("without --key whoever reaches this address may run code here" in capsys.readouterr().err) == warns
