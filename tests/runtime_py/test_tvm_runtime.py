"""Threads and memory of the runtime."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blockffn_mlc.errors import UserError
from runtime_py import tvm_runtime


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process in which no engine has been loaded yet."""
    monkeypatch.setattr(tvm_runtime, "_threads", None)
    for name in ("TVM_NUM_THREADS", "TVM_BIND_THREADS"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what set_threads writes
        monkeypatch.delenv(name)


def test_the_first_number_of_threads_holds_for_the_process():
    assert tvm_runtime.set_threads(3) == 3 and os.environ["TVM_NUM_THREADS"] == "3"
    assert tvm_runtime.set_threads(None) == tvm_runtime.set_threads(3) == 3
    with pytest.raises(UserError, match=r"already runs kernels on 3 thread\(s\); start a new one to use 2"):
        tvm_runtime.set_threads(2)


@pytest.mark.parametrize(("value", "expected"), [("5", 5), ("", None), ("many", None), ("0", None)])
def test_the_environment_supplies_the_default(monkeypatch, value, expected):
    monkeypatch.setenv("TVM_NUM_THREADS", value)
    assert tvm_runtime.set_threads(None) == (expected or tvm_runtime.physical_cores())


def test_zero_threads_are_refused():
    with pytest.raises(UserError, match="expected a positive integer, found 0"):
        tvm_runtime.set_threads(0)


def test_physical_cores_are_at_most_the_processors():
    assert 1 <= tvm_runtime.physical_cores() <= os.cpu_count()


def test_more_threads_than_cores_cannot_be_pinned():
    with pytest.raises(UserError, match="cannot have a core each: .*lower --threads"):
        tvm_runtime.pin_threads(tvm_runtime.physical_cores() + 1)


def test_systems_that_cannot_bind_say_so(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(UserError, match="cannot bind threads"):
        tvm_runtime.pin_threads(1)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float16", np.dtype(np.int32)])
def test_memory_is_aligned_and_zero(shape, dtype):
    array = tvm_runtime.aligned_zeros(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and not array.any()
    assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous


def test_a_missing_runtime_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.delenv("TVM_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match="pip install"):
        tvm_runtime.load_runtime()


def test_an_interruption_passes_through_tvm():
    script = """
from runtime_py.tvm_runtime import load_runtime

def interrupted():
    raise KeyboardInterrupt

try:
    load_runtime().convert(interrupted)()
except KeyboardInterrupt:
    print("interrupted")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            cwd=Path(__file__).resolve().parents[2])
    assert result.stdout == "interrupted\n", result.stderr
