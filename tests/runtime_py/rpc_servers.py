"""Server processes for tests."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def rpc_server(storage, *options):
    """A server process on loopback. Its ``address`` is HOST:PORT."""
    command = [sys.executable, "-m", "runtime_py", "rpc-server", "--port", "0", "--storage", str(storage), *options]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TVM_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as server:
        try:
            server.address = server.stdout.readline().strip()
            assert server.address, server.stderr.read()
            yield server
        finally:
            server.kill()


def children(pid):
    """Processes that process ``pid`` started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
