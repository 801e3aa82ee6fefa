#!/usr/bin/env python3
"""Make environments with the TVM runtimes between which MLC's own lies, and say where they are.

    eval "$(python tools/older_tvm.py)"
    pytest tests/runtime_py/test_mlc_check.py

Each holds apache-tvm and numpy, nothing else (together 800 MB on disk), in --cache. Printed is the line for the shell
by which the tests find them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runtime_py.files import cache_folder  # noqa: E402

# The first wheel was built against an older apache-tvm-ffi than it allows.
VERSIONS = {"0.25.0.post1": ("apache-tvm==0.25.0.post1", "apache-tvm-ffi==0.1.12", "numpy"),
            "0.26.0": ("apache-tvm==0.26.0", "numpy")}
VARIABLE = "BLOCKFFN_OLDER_TVM"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "older-tvm", metavar="DIR",
                        help="where the environments are kept (default: %(default)s)")
    folder = parser.parse_args(argv).cache.absolute()
    try:
        pythons = [str(install(folder, version)) for version in VERSIONS]
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}; check the network and the free space, or choose another --cache", file=sys.stderr)
        return 1
    print(f"export {VARIABLE}={shlex.quote(os.pathsep.join(pythons))}")
    return 0


def install(folder: Path, version: str) -> Path:
    """The Python of an environment with that TVM, made now unless it is there. Raises OSError, CalledProcessError."""
    environment = folder / version
    if not environment.is_dir():
        print(f"fetching TVM {version} into {folder}", file=sys.stderr)
        # Environments cannot be moved: built in place, and taken away if that fails.
        try:
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet",
                            "--disable-pip-version-check", *VERSIONS[version]], check=True, stdout=sys.stderr)
        except BaseException:
            shutil.rmtree(environment, ignore_errors=True)
            raise
    return environment / "bin" / "python"


if __name__ == "__main__":
    sys.exit(main())
