#!/usr/bin/env python3
"""Compile llama.cpp as the tests of benchmarks/peers.py need it, quickly and not fast, and say where it is.

    eval "$(python tools/compile_llama.py)"
    pytest tests/benchmarks

Without the optimiser, instructions of this very processor, tools and servers it takes two minutes of one core, not ten:
to measure with, `pip install 'blockffn-mlc[peers]'`. It goes into a folder in --cache: nothing is installed. Printed is
the line for the shell by which Python finds it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runtime_py.files import cache_folder  # noqa: E402

PACKAGE, NEEDS = "llama-cpp-python==0.3.36", "diskcache==5.6.3"
_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS_RELEASE=-O0", "-DCMAKE_CXX_FLAGS_RELEASE=-O0",
            "-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF", "-DLLAMA_OPENSSL=OFF", "-DSKBUILD_PLATLIB_DIR=unused")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "llama-cpp", metavar="DIR",
                        help="where it is kept (default: %(default)s)")
    folder = parser.parse_args(argv).cache.absolute() / PACKAGE
    try:
        if not folder.is_dir():
            install(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}; it takes pip, cmake, ninja and a C++ compiler", file=sys.stderr)
        return 1
    print(f"export PYTHONPATH={shlex.quote(str(folder))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return 0


def install(folder: Path) -> None:
    """Make ``folder`` with the packages llama_cpp and diskcache. Raises OSError, CalledProcessError."""
    print(f"compiling {PACKAGE} for {folder}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        work, made = Path(temporary), Path(temporary) / "made"
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        _run(*pip, "download", "--no-deps", "--no-binary", ":all:", "--dest", work, PACKAGE)
        _run(*pip, "install", "--no-deps", "--target", made, NEEDS)
        with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        source, build = next(work.glob("llama_cpp_python-*/")), work / "build"
        # pip would build all that the project installs; only this library is needed.
        _run("cmake", "-G", "Ninja", "-S", source, "-B", build, *_OPTIONS)
        _run("cmake", "--build", build, "--target", "llama")
        shutil.copytree(source / "llama_cpp", made / "llama_cpp")
        (made / "llama_cpp" / "lib").mkdir(exist_ok=True)
        for library in build.rglob("lib*.so*"):
            shutil.copy(library, made / "llama_cpp" / "lib", follow_symlinks=False)
        os.replace(made, folder)


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
