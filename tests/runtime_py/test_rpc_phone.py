"""A client of a server of TVM's own, as phones run it, which is a process on loopback: files, keys, turns."""

import json
import os
import signal
from contextlib import suppress

import numpy as np
import pytest
from rpc_servers import cable, looked_after, phone, wait_for_a_turn
from toy import write_artifact

from blockffn_mlc.errors import UserError
from runtime_py.artifact import Artifact
from runtime_py.rpc.client import connect
from runtime_py.rpc.connection import Connection
from runtime_py.rpc.storage import sha256
from runtime_py.rpc.wire import Address
from runtime_py.tvm_runtime import load_runtime

SHARD = "params_shard_0.bin"


@pytest.fixture(scope="module")
def server():
    with phone("cpu") as server:
        yield server


@pytest.fixture
def artifact(tmp_path):
    """Built for a phone's device, as it says; its shard is a megabyte."""
    write_artifact(tmp_path / "toy")
    config = tmp_path / "toy" / "mlc-chat-config.json"
    values = json.loads(config.read_text())
    values["blockffn"]["target"] = "opencl"
    config.write_text(json.dumps(values))
    (tmp_path / "toy" / SHARD).write_bytes(np.random.default_rng(0).bytes(1 << 20))
    return Artifact.open(tmp_path / "toy")


@pytest.fixture
def send(server, tmp_path):
    """send(artifact) -> what is said on the way of its files to a folder of the server's."""
    (tmp_path / "there").mkdir()

    def send(artifact, address=None, folder=tmp_path / "there"):
        said = []
        with connect(Address.parse(address or server.address), str(folder)) as client:
            client.send(artifact, said.append)
        return said

    return send


def stored(tmp_path, artifact, name=SHARD):
    """Where a file is on the server."""
    path = artifact.path / name
    return tmp_path / "there" / f"{sha256(path)}{path.suffix}"


def test_files_are_sent_once(send, artifact, tmp_path):
    assert send(artifact) == ["send lib/toy.so, 0.0 MB", f"send {SHARD}, 1.0 MB"]
    assert stored(tmp_path, artifact).read_bytes() == (artifact.path / SHARD).read_bytes()
    assert stored(tmp_path, artifact, "lib/toy.so").read_bytes() == b"not a library"
    assert send(artifact) == ["toy: 2 of 2 files are there already"]
    first = stored(tmp_path, artifact)
    (artifact.path / SHARD).write_bytes(bytes(1 << 20))  # built again
    assert send(artifact) == ["toy: 1 of 2 files are there already", f"send {SHARD}, 1.0 MB"]
    assert first.is_file() and stored(tmp_path, artifact).read_bytes() == bytes(1 << 20)


def test_a_cut_in_the_middle_of_a_shard(send, server, artifact, tmp_path):
    with cable(server.address, 1 << 19) as address:
        with pytest.raises(UserError, match=f"{address}: the connection broke off .* what was sent is kept there: "
                                            "start again"):
            send(artifact, address)
    assert not stored(tmp_path, artifact).exists()
    again = ["toy: 1 of 2 files are there already", f"send {SHARD}, 1.0 MB"]
    assert send(artifact) == again
    assert stored(tmp_path, artifact).read_bytes() == (artifact.path / SHARD).read_bytes()


@pytest.mark.parametrize("change", [
    lambda data: data[:1 << 19],  # the server was ended while it wrote
    lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: bytes([data[0] ^ 128]) + data[1:],
    lambda data: data + b"0"])
def test_a_shard_that_was_changed_there_is_found(send, artifact, tmp_path, change):
    send(artifact)
    place, data = stored(tmp_path, artifact), (artifact.path / SHARD).read_bytes()
    place.write_bytes(change(data))
    assert send(artifact) == ["toy: 1 of 2 files are there already", f"send {SHARD}, 1.0 MB"]
    assert place.read_bytes() == data


def test_a_full_storage(send, artifact, tmp_path):
    place = stored(tmp_path, artifact)
    place.symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"there: {SHARD} arrived as another file there and was removed; is the storage "
                                        "full"):
        send(artifact)
    assert not place.is_symlink()


def test_a_folder_that_cannot_be_written(send, artifact, tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be written there; make this folder, or choose another with "
                                        "--rpc-folder"):
        send(artifact, folder=tmp_path / "nowhere")
    with pytest.raises(UserError, match="--rpc-folder: expected an absolute path, found 'there'"):
        send(artifact, folder="there")


def test_a_server_without_a_function_that_is_needed(server, tmp_path):
    with connect(Address.parse(server.address), str(tmp_path)) as client:
        with pytest.raises(UserError, match=f"{server.address}: its server lacks 'vm.nothing', a function of TVM's"):
            with client._connection.told():
                client._session["vm.nothing"]
        with pytest.raises(AttributeError, match="mistake"):  # in this program
            with client._connection.told():
                os.mistake  # noqa: B018


def test_a_library_for_another_processor(server, artifact, tmp_path):
    with connect(Address.parse(server.address), str(tmp_path)) as client:
        library = client.send(artifact, lambda text: None)
        with pytest.raises(UserError, match=f"{server.address}: the artifact is built for another processor or system "
                                            "than the server's: "):
            with client._connection.told():
                load_runtime().get_global_func("rpc.LoadRemoteModule")(client._session, library)


def test_the_system_looks_whether_the_server_is_there(server):
    connection = Connection(Address.parse(server.address), print)
    assert looked_after(connection._socket)
    connection.close()


def test_who_leaves_does_not_wait_for_what_is_not_sent_yet():
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with phone("cpu") as server:
            connection = Connection(Address.parse(server.address), print)
            os.killpg(server.pid, signal.SIGSTOP)
            connection._socket.setblocking(False)
            with suppress(BlockingIOError):
                while connection._socket.send(bytes(1 << 20)):
                    pass  # until the system takes no more
            connection._socket.setblocking(True)
            signal.alarm(60)
            connection.close()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_second_client_waits_and_is_told(server, monkeypatch):
    wait_for_a_turn(Address.parse(server.address), monkeypatch)


def test_keys_and_versions(server, tmp_path):
    with pytest.raises(UserError, match=f"{server.address}/key: its key is another; name it as HOST:PORT/KEY"):
        connect(Address.parse(f"{server.address}/key"), str(tmp_path))
    with cable(server.address, change=(b"0.8.0", b"0.7.0")) as address:
        with pytest.raises(UserError, match=f"{address}: its TVM is of another version; install the same on both"):
            connect(Address.parse(address), str(tmp_path))
