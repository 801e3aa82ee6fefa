"""Sending files to a server process on loopback, and what goes wrong on the way."""

import hashlib
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from rpc_servers import cable, children, rpc_server
from toy import write_artifact

from blockffn_mlc.errors import UserError
from runtime_py.artifact import Artifact
from runtime_py.bench.accounting import Sample
from runtime_py.bench.measure import Setup
from runtime_py.bench.tasks import Task
from runtime_py.cli import main
from runtime_py.rpc import client as client_module
from runtime_py.rpc.codec import decode, encode
from runtime_py.rpc.files import artifact_files
from runtime_py.rpc.storage import sha256
from runtime_py.rpc.wire import Address

KEY = "toaster"
PIECE = 1 << 14


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with rpc_server(tmp_path_factory.mktemp("server"), "--key", KEY) as server:
        yield server


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """With a megabyte that no test sent before, in small pieces."""
    write_artifact(tmp_path / "toy")
    (tmp_path / "toy" / "kernels.json").write_bytes(np.random.default_rng().bytes(1 << 20))
    monkeypatch.setattr(client_module, "_PIECE", PIECE)
    return Artifact.open(tmp_path / "toy")


@pytest.fixture
def connect():
    """connect(address) -> a client, whose connection ends with the test or with the next one."""
    made = []

    def connect(address, key=KEY):
        if made:
            made[-1].close()
        made.append(client_module.connect(Address.parse(f"{address}/{key}"), "/"))
        return made[-1]

    yield connect
    for client in made:
        client.close()


def test_files_are_sent_once(server, artifact, connect):
    said = []
    folder = Path(connect(server.address).send(artifact, said.append))
    names = artifact_files(artifact)
    assert said == [f"send {len(names)} of {len(names)} files of toy, "
                    f"{sum((artifact.path / name).stat().st_size for name in names) / 1e6:.1f} MB"]
    assert folder.name == "toy" and {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()
                                     } == set(names)
    assert all((folder / name).read_bytes() == (artifact.path / name).read_bytes() for name in names)
    assert Artifact.open(folder).weights.keys() == artifact.weights.keys()
    client = connect(server.address)
    assert client.send(artifact, said.append) == str(folder) and len(said) == 1
    (artifact.path / "kernels.json").write_bytes(b"{}")
    assert client.send(artifact, said.append) != str(folder)
    assert said[1] == f"send 1 of {len(names)} files of toy, 0.0 MB"


def test_equal_files_are_sent_once(server, artifact, connect):
    client, said = connect(server.address), []
    client.send(artifact, said.append)
    for name in ("kernels.json", "tokenizer.json"):
        (artifact.path / name).write_bytes(bytes(1 << 20))
    folder = Path(client.send(artifact, said.append))
    assert said[1:] == [f"send 1 of {len(artifact_files(artifact)) - 1} files of toy, 1.0 MB"]
    assert (folder / "tokenizer.json").read_bytes() == (folder / "kernels.json").read_bytes()


def test_a_cut_upload_goes_on_where_it_was(server, artifact, connect):
    """Nothing is half there in between."""
    digest = sha256(artifact.path / "kernels.json")
    with cable(server.address, 1 << 19) as address:
        with pytest.raises(UserError, match="the connection broke off .* what was sent is kept there: start again"):
            connect(address).send(artifact, lambda text: None)
    client = connect(server.address)
    held = client.call("held", digest)
    assert 0 < held < 1 << 20 and held % PIECE == 0
    with pytest.raises(UserError, match="file 'kernels.json' is missing or damaged in the server's storage"):
        client.call("assemble", "toy", {"kernels.json": digest})
    left = {name: (artifact.path / name).stat().st_size - there for name in artifact_files(artifact)
            if (there := client.call("held", sha256(artifact.path / name))) >= 0}
    assert left["kernels.json"] == (1 << 20) - held
    said = []
    folder = client.send(artifact, said.append)
    assert said == [f"send {len(left)} of 6 files of toy, {sum(left.values()) / 1e6:.1f} MB"]
    assert sha256(Path(folder) / "kernels.json") == digest


def test_what_arrives_as_another_file_is_refused(server, artifact, connect):
    client, digest = connect(server.address), hashlib.sha256(b"right").hexdigest()
    client._answer("append", digest, 0, b"wrong")
    with pytest.raises(UserError, match="arrived as another .* was removed; send it again"):
        client.call("finish", digest)
    assert client.call("held", digest) == 0
    with pytest.raises(UserError, match="expected to go on at byte 0, found 5"):
        client._answer("append", digest, 5, b"right")
    client._answer("append", digest, 0, b"right")
    client.call("finish", digest)
    assert client.call("held", digest) == -1


def test_who_does_not_know_the_key_is_refused(server, connect):
    host, port = server.address.split(":")
    for key in ("", "other", KEY + "x"):
        with pytest.raises(UserError, match=f"{server.address}.*: its key is another; name it as HOST:PORT/KEY"):
            client_module.connect(Address(host, int(port), key), "/")
    for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\x71\xf2\x0f\x00\xff\xff\xff\x7f", b""):
        with socket.create_connection((host, int(port)), timeout=30) as stranger:
            stranger.sendall(garbage)
            with suppress(OSError):  # it may have hung up already
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(100) == b""
    assert connect(server.address).call("held", "0" * 64) == 0


def test_requests_that_the_server_does_not_know(server, connect):
    with pytest.raises(UserError, match="unknown request 'exec'"):
        connect(server.address).call("exec", "1")


def test_what_fails_there_is_told_and_the_connection_stays(tmp_path, connect):
    with rpc_server(tmp_path, "--key", KEY) as server:
        client, digest = connect(server.address), "0" * 64
        with pytest.raises(UserError, match="failed there: TypeError: .*missing 1 required positional argument"):
            client.call("assemble", "toy")
        (tmp_path / "blobs").rename(tmp_path / "away")
        with pytest.raises(UserError, match="failed there: FileNotFoundError: .*No such file"):
            client.call("finish", digest)
        (tmp_path / "away").rename(tmp_path / "blobs")
        assert client.call("held", digest) == 0


def test_a_host_that_is_not_there_has_no_other_key():
    with pytest.raises(UserError, match="keyhost.invalid:1: cannot connect"):
        client_module.connect(Address("keyhost.invalid", 1), "/")


def test_tvms_own_client_is_served(server):
    from tvm import rpc
    host, port = server.address.split(":")
    assert rpc.connect(host, int(port), KEY).get_function("blockffn.rpc.version")() == 2


def test_a_server_that_dies_in_a_run(tmp_path, connect):
    with rpc_server(tmp_path / "storage", "--key", KEY) as server:
        client, killed = connect(server.address), []

        def kill():
            deadline = time.monotonic() + 60
            while not killed and time.monotonic() < deadline:
                killed.extend(grandchild for child in children(server.pid) for grandchild in children(child))
            server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(UserError, match="the connection broke off"):
            while True:  # until it is killed
                client.call("surroundings", Setup("x", 1))
        killer.join()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in killed) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert killed and not any(Path(f"/proc/{pid}").exists() for pid in killed)
    with pytest.raises(UserError, match="cannot connect .*is 'python -m runtime_py rpc-server' running there"):
        connect(server.address)


def test_a_measuring_process_that_dies(server, tmp_path, connect):
    client = connect(server.address)
    setup = Setup(str(tmp_path), 1)
    client.call("surroundings", setup)
    for child in children(server.pid):
        for measuring in children(child):
            os.kill(measuring, signal.SIGKILL)
    with pytest.raises(UserError, match="the measuring process was ended from outside"):
        client.call("surroundings", setup)
    with pytest.raises(UserError, match="mlc-chat-config.json: no such file"):
        client.call("prepare", Setup(str(tmp_path), 2), [])


@pytest.mark.parametrize(("text", "address"), [
    ("phone:9090", Address("phone", 9090)), ("10.0.0.1:1/a/b", Address("10.0.0.1", 1, "a/b")),
    ("tracker:x:9/k", Address("x", 9, "k", tracker=True))])
def test_addresses(text, address):
    assert Address.parse(text) == address and str(address) == text


@pytest.mark.parametrize("text", ["phone", "phone:", ":90", "phone:65536", "phone:9/", "tracker:x:9", "a b:9",
                                  "x:9/k l"])
def test_other_addresses_are_refused(text):
    with pytest.raises(UserError, match="expected HOST:PORT, HOST:PORT/KEY or tracker:HOST:PORT/KEY"):
        Address.parse(text)


def test_what_goes_over_the_wire():
    value = [Setup("x", None, draft="eagle"), [Task("tg", 4, 64, "sparse")], Sample(1.5, 4, 10, None, 0.25, 0.5), None]
    assert decode(encode(value)) == value
    with pytest.raises(TypeError, match="object does not go over the wire"):
        encode(object())


@pytest.mark.parametrize(("options", "message"), [
    (["--port", "70000"], "--port: expected 0 to 65535"), (["--key", "a b"], "--key: expected a word"),
    (["--tracker", "x:9"], "--tracker: expected --key beside it"),
    (["--tracker", "x", "--key", "k"], "expected HOST:PORT"),
    (["--tracker", "x:9/k", "--key", "k"], "--tracker: expected HOST:PORT, found 'x:9/k'"),
    (["--host", "256.0.0.1", "--key", "k"], "256.0.0.1:9090: cannot listen there")])
def test_a_server_that_cannot_be(tmp_path, capsys, options, message):
    assert main(["rpc-server", "--storage", str(tmp_path), *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("error: ")


def test_a_server_is_for_this_machine_alone_unless_told_otherwise(server):
    assert server.address.startswith("127.0.0.1:")
