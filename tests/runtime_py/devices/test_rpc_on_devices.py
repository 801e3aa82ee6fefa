"""``bench`` and ``verify`` over a server process on loopback, on the processor and a device."""

import json

import pytest
from checkpoints import GQA
from machine import opencl_device
from rpc_servers import rpc_server

from runtime_py.cli import main

TIMED = {"time", "busy_before", "load_s", "first_pass_s", "peak_memory_bytes", "seconds", "tokens_per_s", "ms",
         "tokens_per_s_sd", "gb_per_s", "gop_per_s", "clock_mhz", "roof_gb_per_s", "roof_gop_per_s"}


@pytest.fixture(scope="module", params=["cpu", "opencl"])
def target(request):
    """A kind of devices, and the name of one."""
    return request.param, "cpu" if request.param == "cpu" else opencl_device().name


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with rpc_server(tmp_path_factory.mktemp("server"), "--key", "k") as server:
        yield server


def test_what_a_server_measures_is_what_is_measured_here(built, target, server, capsys):
    kind, device = target
    folder = built(GQA, "q0f32", kind)
    command = ["bench", str(folder), "--device", device, "-p", "5", "-n", "4", "--chunks", "3", "--depth", "3", "-r",
               "1", "--threads", "1", "--modes", "dense,sparse,speculative", "--tree-size", "2", "-o", "json"]
    assert main([*command, "--rpc", f"{server.address}/k"]) == 0
    there, err = capsys.readouterr()
    assert "send " in err and "round 1 of 1" in err
    assert main(command) == 0
    there, here = json.loads(there), json.loads(capsys.readouterr().out)
    assert [{name: value for name, value in record.items() if name not in TIMED} for record in there] == [
        {name: value for name, value in record.items() if name not in TIMED} for record in here]
    assert all(record["seconds"][0] > 0 for record in there) and len(there) == 7
    for record in (*there, *here):
        assert record["roof_gop_per_s"] > 0 and (record["roof_gb_per_s"] is not None) == (kind == "cpu")


def test_kernels_are_verified_on_a_server(built, target, server, capsys):
    kind, device = target
    folder = built(GQA, "q0f32", kind)
    assert main(["verify", str(folder), "--device", device, "--rpc", f"{server.address}/k", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["device"] == device and report["artifact"] == folder.name
    assert all(kernel["calls"] for kernel in report["kernels"]) and len(report["kernels"]) > 8
    assert main(["verify", str(folder), "--device", "vulkan:99", "--rpc", f"{server.address}/k"]) == 1
    assert f"error: {server.address}/k: device 'vulkan" in capsys.readouterr().err

