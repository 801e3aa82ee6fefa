"""A server process that registers at TVM's tracker, on loopback."""

import socket

import pytest
from rpc_servers import interrupted, rpc_server, until
from toy import write_artifact

from blockffn_mlc.errors import UserError
from runtime_py.cli import main
from runtime_py.rpc import connection, wire
from runtime_py.rpc.client import connect
from runtime_py.rpc.server import Server
from runtime_py.rpc.wire import Address


@pytest.fixture(scope="module")
def tracker():
    """Its port."""
    from tvm.rpc.tracker import Tracker
    tracker = Tracker(host="127.0.0.1", port=19190, port_end=19390)
    yield tracker.port
    tracker.terminate()


def test_a_tracker_hands_out_the_servers_there_are(tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.2)
    address = Address("127.0.0.1", tracker, "k", tracker=True)
    with wire.connect_tracker("127.0.0.1", tracker, 30) as asking:
        def summary():
            return wire.ask_tracker(asking, wire.SUMMARY)[1]

        with rpc_server(tmp_path, "--key", "k", "--tracker", f"127.0.0.1:{tracker}") as server:
            for _ in range(2):  # one after the other
                with connect(address, "/") as client:
                    assert client.call("held", "0" * 64) == 0
            with pytest.raises(UserError, match="its key is another"):
                connect(Address.parse(f"{server.address}/k"), "/")  # the key is the tracker's to give
            until(lambda: summary()["queue_info"]["k"]["free"])
            assert summary()["server_info"] == [{"key": "server:k", "addr": [
                "127.0.0.1", int(server.address.split(":")[1])]}]
        until(lambda: not summary()["queue_info"]["k"]["free"])
        assert summary()["server_info"] == []
    write_artifact(tmp_path / "toy")
    code, said = interrupted("bench", str(tmp_path / "toy"), "--rpc", str(address))
    assert code == 130
    assert said == f"{address}: the tracker has no free server of that key; waiting (Ctrl-C ends it)\n\ninterrupted\n"


def test_a_server_on_the_trackers_machine_is_looked_for_there(monkeypatch):
    """The tracker knows it by an address that is everybody's own."""
    monkeypatch.setattr(wire, "connect_tracker", lambda *_: socket.socket())
    for found, expected in (("127.0.0.1", "192.0.2.1"), ("192.0.2.7", "192.0.2.7")):
        monkeypatch.setattr(wire, "ask_tracker", lambda *_, found=found: (wire.SUCCESS, [found, 9090, "k:0.5"]))
        assert connection._find(Address("192.0.2.1", 9190, "k", tracker=True), print) == (expected, 9090, "k:0.5")


def test_a_tracker_that_is_none(tmp_path):
    with rpc_server(tmp_path) as server:
        with pytest.raises(UserError, match=f"tracker:{server.address}/k: the tracker cannot be asked"):
            connect(Address.parse(f"tracker:{server.address}/k"), "/")


def test_a_tracker_elsewhere_needs_a_server_that_others_reach(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Server, "run", lambda self: self._listener.close())
    arguments = ["rpc-server", "--port", "0", "--storage", str(tmp_path), "--key", "k", "--tracker"]
    assert main([*arguments, "192.0.2.1:9190"]) == 1
    assert "where a server at 127.0.0.1 does not listen; add --host 0.0.0.0" in capsys.readouterr().err
    for options in ("192.0.2.1:9190", "--host", "0.0.0.0"), ("127.0.0.1:9190",):
        assert main([*arguments, *options]) == 0
