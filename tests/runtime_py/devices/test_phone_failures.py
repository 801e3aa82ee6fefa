"""What ends a benchmark on a phone: its server is a process of this machine's, with TVM's own functions alone."""

import os
import signal
import subprocess
import sys

import pytest
from checkpoints import GQA
from machine import opencl_device
from rpc_servers import ROOT, phone


@pytest.fixture
def bench(built, tmp_path):
    """bench(server) -> a process that measures there until it is ended, the same files every time."""
    device = opencl_device()

    def bench(server):
        return subprocess.Popen(
            [sys.executable, "-m", "runtime_py", "bench", built(GQA, "q0f32", device.kind), "--device", device.name,
             "-p", "0", "-n", "4", "--chunks", "0", "--depth", "3", "-r", "1000000", "-o", "json", "--rpc",
             server.address, "--rpc-folder", tmp_path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True)

    return bench


def begun(run):
    """Lines of stderr until it measures."""
    lines = []
    while not lines or not lines[-1].startswith("round 2"):
        lines.append(run.stderr.readline())
        assert lines[-1], lines
    return lines


def end(run):
    """Its exit code, and what it says at last behind the rounds; it has printed nothing."""
    out, err = run.communicate(timeout=120)
    assert out == ""
    return run.returncode, [line for line in err.splitlines() if not line.startswith("round ")]


def test_ctrl_c_and_a_phone_that_goes_away(bench):
    """The first leaves nothing half there: the next run finds the files, and loads them."""
    with phone(opencl_device().kind) as server:
        with bench(server) as run:
            assert any(line.startswith("send params_shard_0.bin") for line in begun(run))
            os.killpg(server.pid, signal.SIGSTOP)  # in a call that takes for ever
            run.send_signal(signal.SIGINT)
            assert end(run) == (130, ["", "interrupted"])
            os.killpg(server.pid, signal.SIGCONT)
        with bench(server) as run:
            assert any(line.endswith(": 2 of 2 files are there already\n") for line in begun(run))
            server.end()
            code, (error,) = end(run)
        assert code == 1 and error.startswith(f"error: {server.address}: the connection broke off (")
        assert error.endswith("; what was sent is kept there: start again")
