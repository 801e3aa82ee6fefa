"""The harness itself sees what it is there to see."""

import numpy as np
import pytest
from harness import InOut, Out, check_rows, run
from numpy.lib.stride_tricks import as_strided


@pytest.fixture
def kernel(monkeypatch):
    """Let ``run`` call a Python function on numpy views instead of a compiled kernel."""
    monkeypatch.setattr("harness.compiled", lambda func, target: lambda *args: func(
        *(arg if isinstance(arg, int) else writable(arg) for arg in args)))


def writable(tensor):
    """The tensor's memory as a writable array."""
    view = np.from_dlpack(tensor)
    return view if view.flags.writeable else as_strided(view, writeable=True)


class Anything:
    tvm_target = None


def copy(x, y):
    y[...] = x


def overrun(x, y):
    y[...] = x
    as_strided(y, (len(y) + 1,), y.strides)[len(x)] = 1


def underrun(x, y):
    copy(x[::-1], as_strided(y[::-1], y.shape, (-y.itemsize,)))
    as_strided(y[::-1], (len(y) + 1,), (-y.itemsize,))[len(y)] = 1


def gap(x, y):
    y[1:] = x[1:]


def spoil(x, y):
    copy(x, y)
    x[0] = 7


@pytest.mark.parametrize("function, message", [
    (overrun, "outside"), (underrun, "outside"), (gap, "not fully written"), (spoil, "input modified")])
def test_faults_are_seen(kernel, function, message):
    with pytest.raises(AssertionError, match=message):
        run(function, Anything, np.arange(5, dtype="float32"), Out((5,)))


def test_results_come_back(kernel):
    x = np.arange(5, dtype="float32")
    assert np.array_equal(run(copy, Anything, x, Out((5,))), x)
    assert np.array_equal(run(lambda y, x, k: copy(x * k, y), Anything, InOut(x * 0), x, 3), x * 3)
    run(gap, Anything, x, Out((5,), partial=True))


def test_rows_that_depend_on_their_number_are_seen():
    rows = np.ones((130, 2), "float32")
    check_rows(lambda n: rows[:n], rows)
    with pytest.raises(AssertionError, match="33 tokens"):
        check_rows(lambda n: rows[:n] + (n == 33), rows)
    with pytest.raises(AssertionError):
        check_rows(lambda n: rows[:n] * np.float32(1.00001), rows)
    with pytest.raises(AssertionError):
        check_rows(lambda n: rows[:n] * np.nan, rows)
