"""CUDA's compilers, where they are."""

import shutil

import pytest
from checkpoints import MLA, write_random_checkpoint

from targets.cuda.compilers import INSTALL, Nvrtc, find_compiler


@pytest.fixture(scope="session")
def compiler():
    found = find_compiler()
    if found is None:
        pytest.skip(f"no CUDA compiler; install one: {INSTALL}")
    return found


@pytest.fixture
def only_nvcc(monkeypatch):
    """nvcc, as where NVRTC is not installed."""
    if not shutil.which("nvcc"):
        pytest.skip("this machine lacks nvcc, which no package that pip installs puts on the path")
    monkeypatch.setattr(Nvrtc, "find", lambda: None)
    find_compiler.cache_clear()
    yield find_compiler()
    find_compiler.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """As on a machine with neither."""
    monkeypatch.setattr(Nvrtc, "find", lambda: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    find_compiler.cache_clear()
    assert find_compiler() is None
    yield
    find_compiler.cache_clear()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    write_random_checkpoint(folder, MLA)
    return folder
