"""build.py as a function."""

import contextlib
import io
from types import SimpleNamespace

import build as command


def build(*arguments, check=True):
    """Run build.py in this process; its exit code and what it printed."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    assert code == 0 or not check, stderr.getvalue()
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())
