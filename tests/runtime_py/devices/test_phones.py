"""``verify`` and ``bench`` over a server that has TVM's own functions alone, as phones have."""

import json

import pytest
from checkpoints import GQA
from machine import opencl_device
from rpc_servers import phone
from test_rpc_on_devices import TIMED

from blockffn_mlc.errors import UserError
from runtime_py.artifact import Artifact
from runtime_py.bench.measure import CALLS, WHOLE, Setup, prepare
from runtime_py.bench.tasks import Task
from runtime_py.cli import main
from runtime_py.rpc.client import connect
from runtime_py.rpc.device import RemoteDevice
from runtime_py.rpc.service import verify
from runtime_py.rpc.wire import Address
from runtime_py.selftest import checks

DEMO = None  # for the fixture ``built``
UNKNOWN = {"processor", "processors", "system", "tvm", "timed"}  # of a phone


@pytest.fixture
def few_tokens(monkeypatch):
    monkeypatch.setattr(checks, "TOKENS", (1, 14))  # every further form of a kernel is a program to compile


def there(command, kind, folder):
    """The exit code of a command on a phone."""
    with phone(kind) as server:
        return main([*command, "--rpc", server.address, "--rpc-folder", str(folder)])


def verified(text):
    """What ``verify`` printed; a phone does not count launches."""
    report = json.loads(text)
    for kernel in report["kernels"]:
        del kernel["launches"]
    return report


def compared(records):
    """Without what differs between a phone and here."""
    return [{name: value for name, value in record.items() if name not in TIMED | UNKNOWN} for record in records]


def test_kernels_are_verified_on_a_phone(built, each_device, few_tokens, tmp_path, capsys):
    """Inputs come from here, and the device is the same: so are the errors, to the last bit."""
    command = ["verify", str(built(GQA, "q0f32", each_device.kind)), "--device", each_device.name, "--json"]
    assert main(command) == 0
    here = verified(capsys.readouterr().out)
    assert there(command, each_device.kind, tmp_path) == 0
    out, err = capsys.readouterr()
    assert verified(out) == here and here["ok"] and len(here["kernels"]) > 8
    assert "send params_shard_0.bin" in err and f"kernels verified on {each_device.name}" in err


def test_kernels_for_processors_are_verified_there(built, few_tokens, tmp_path, capsys):
    folder = built(GQA, "q0f32", "cpu")
    assert there(["verify", str(folder)], "cpu", tmp_path) == 0
    out, err = capsys.readouterr()
    names = json.loads((folder / "kernels.json").read_text())["origins"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(names)
    assert f"{len(names)} kernels verified on cpu:0" in err


def test_a_wrong_library_is_found_on_a_phone(built, few_tokens, tmp_path, capsys):
    device = opencl_device()
    folder = built(GQA, "q0f32", device.kind)
    wrong = tmp_path / "wrong"
    for path in folder.rglob("*"):
        if path.is_file():
            copy = wrong / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes().replace(b"1.000000e-05f", b"9.000000e-01f"))
    assert there(["verify", str(wrong), "--device", device.name], device.kind, tmp_path) == 1
    out, err = capsys.readouterr()
    failed = [line.split()[0] for line in out.splitlines() if "FAILED: gives" in line]
    assert "input_layernorm" in failed and len(failed) < len(out.splitlines()) / 2
    assert f"{len(failed)} of " in err and f" kernels failed on {device.name}: {failed[0]} gives " in err


def test_a_phone_times_the_same_passes(built, each_device, tmp_path, capsys):
    device = each_device
    command = ["bench", str(built(GQA, "q0f32", device.kind)), "-p", "20", "-n", "2", "--chunks", "3", "--depth", "3",
               "-r", "1", "-o", "json", "--device", device.name]
    assert there(command, device.kind, tmp_path) == 0
    phones, err = capsys.readouterr()
    assert "send lib/" in err and "send params_shard_0.bin" in err
    assert main([*command, "--threads", "1"]) == 0
    phones, here = json.loads(phones), json.loads(capsys.readouterr().out)
    assert compared(phones) == compared(here) and len(here) == 6
    assert {record["timed"] for record in phones} == {CALLS} and {record["timed"] for record in here} == {WHOLE}
    assert all(record["seconds"][0] > 0 for record in phones)
    assert phones[0]["device_name"] == device.product and phones[0]["driver"]


def test_a_phone_speculates(built, tmp_path, capsys, monkeypatch):
    """Drafts and what comes of them are those of the same device here; each of a step's calls is timed, with
    arguments that leave the cache as it is."""
    device = opencl_device()
    command = ["bench", str(built(DEMO, "q0f32", device.kind)), "-p", "0", "-n", "12", "--chunks", "0", "--depth", "3",
               "-r", "1", "--modes", "speculative", "--tree-size", "8", "-o", "json", "--device", device.name]
    timed, moved = [], []

    def noted(self, machine, name, arguments, seconds=RemoteDevice._seconds):
        if name == "commit":
            moved.append(self.host(arguments[0]).tolist())
        timed.append((name, seconds(self, machine, name, arguments)))
        return timed[-1][1]

    monkeypatch.setattr(RemoteDevice, "_seconds", noted)
    assert there(command, device.kind, tmp_path) == 0
    (phones,) = json.loads(capsys.readouterr().out)
    assert main([*command, "--threads", "1"]) == 0
    (here,) = json.loads(capsys.readouterr().out)
    assert compared([phones]) == compared([here]) and here["draft"] == "eagle" and here["accept_length"] > 2
    assert {name for name, _ in timed} == {"draft", "forward", "commit"} and all(taken > 0 for _, taken in timed)
    assert all(rows == list(range(len(rows))) for rows in moved)
    counted = timed[len(timed) // 2:]  # the first round does not count
    assert phones["seconds"] == [pytest.approx(sum(taken for _, taken in counted))]


def test_what_a_phone_cannot_do_is_refused(built, tmp_path):
    device = opencl_device()
    artifact = Artifact.open(built(GQA, "q0f32", device.kind))
    with phone(device.kind) as server, connect(Address.parse(server.address), str(tmp_path)) as client:
        library = client.send(artifact, print)
        tasks = [Task("tg", 2, 0, "sparse")]
        for options, message in (({"threads": 1}, "--threads: "),
                                 ({"device": "cpu"}, "--device cpu: .*expected a device of its kind"),
                                 ({"device": f"{device.kind}:99"}, f"{server.address}: failed there: ")):
            setup = Setup(str(artifact.path), **({"threads": None} | options))
            for task, arguments in ((prepare, [tasks]), (verify, [])):
                with pytest.raises(UserError, match=message):
                    client.process(setup, library)(task, *arguments)
        processor = Artifact.open(built(GQA, "q0f32", "cpu"))
        with pytest.raises(UserError, match="not for a processor; start 'python -m runtime_py rpc-server' there"):
            client.process(Setup(str(processor.path), None), client.send(processor, print))(prepare, tasks)


def test_a_phone_that_is_gone_is_no_kernels_fault(built, few_tokens, tmp_path, monkeypatch):
    device = opencl_device()
    artifact = Artifact.open(built(GQA, "q0f32", device.kind))
    with phone(device.kind) as server, connect(Address.parse(server.address), str(tmp_path)) as client:
        task = client.process(Setup(str(artifact.path), None, device.name), client.send(artifact, print))
        monkeypatch.setitem(checks.CASES, "router", lambda k, n: server.end())
        with pytest.raises(UserError, match=f"{server.address}: .*start again"):
            task(verify)
