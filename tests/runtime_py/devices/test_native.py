"""Compiling the OpenCL runtime: once, and with a sentence about what is missing."""

import os
import shutil
from pathlib import Path

import pytest

from blockffn_mlc.errors import UserError
from runtime_py.devices import load, native
from runtime_py.tvm_runtime import load_runtime

OPENCL, VULKAN = native.RUNTIMES["opencl"], native.RUNTIMES["vulkan"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """compiler(text): a C++ compiler that only complains."""
    def compiler(text):
        script = tmp_path / "c++"
        script.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
    return compiler


@pytest.mark.parametrize(("tool", "words"), [("c++", r"a C\+\+ compiler \(c\+\+\) is missing"),
                                             ("ninja", "ninja is missing")])
def test_missing_tools_are_named(monkeypatch, tool, words):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/bin/{name}")
    with pytest.raises(UserError, match=f"{words}; install it, for example with: apt install g"):
        native._built(OPENCL)


@pytest.mark.parametrize(("runtime", "said", "words"), [
    (OPENCL, "opencl/errors.h:4:10: fatal error: CL/cl.h: No such file", r"headers \(CL/cl.h\) is missing"),
    (OPENCL, "opencl/errors.h:4:10: fatal error: CL/cl.h file not found", "opencl-headers"),
    (OPENCL, "/usr/bin/ld: cannot find -lOpenCL: No such file", r"loader \(libOpenCL\) is missing; .*ocl-icd"),
    (OPENCL, "ld.lld: error: unable to find library -lOpenCL", r"loader \(libOpenCL\) is missing"),
    (OPENCL, "device_api.cc:6:10: fatal error: tvm/runtime/device_api.h: No such file", "TVM.s headers is missing"),
    (VULKAN, "instance.h:4:10: fatal error: vulkan/vulkan.h: No such file", r"headers \(vulkan/vulkan.h\) is missing;"),
    (VULKAN, "/usr/bin/ld: cannot find -lvulkan: No such file", "missing; install .* ninja-build libvulkan-dev$")])
def test_missing_headers_and_libraries_are_named(device, compiler, runtime, said, words):
    compiler(said)
    with pytest.raises(UserError, match=words) as caught:
        native._built(runtime)
    assert "\n" not in str(caught.value)


def test_other_complaints_are_kept_for_reading(device, compiler, cache):
    compiler("internal compiler error: out of ideas")
    with pytest.raises(UserError, match="cannot be compiled; what the compiler says is in .*opencl-build.log"):
        native._built(OPENCL)
    assert "out of ideas" in (cache / "native" / "opencl-build.log").read_text()
    assert [path.name for path in (cache / "native").iterdir()] == ["opencl-build.log"]


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled, by a compiler that makes an empty library."""
    compiled = []

    def compile(runtime, folder):
        compiled.append(runtime)
        path = Path(folder) / "made.so"
        path.write_text("library")
        return str(path)
    monkeypatch.setattr(native, "_compile", compile)
    return compiled


def test_it_is_compiled_once_for_a_source_and_a_tvm(compiled, cache, monkeypatch):
    first = native._built(OPENCL)
    assert native._built(OPENCL) == first and len(compiled) == 1 and first.read_text() == "library"
    assert list((cache / "native").iterdir()) == [first]
    names = {path.name for path in OPENCL.sources()}
    assert names >= {"device.cc", "device_api.cc", "module.cc", "launch.h", "module_bytes.h", "spare_buffers.h"}
    monkeypatch.setattr(native, "installed_version", lambda: "another")
    assert native._built(OPENCL) != first and len(compiled) == 2


def test_only_the_users_own_library_is_loaded(compiled, cache, monkeypatch):
    before = os.umask(0)  # everything that is made could be written by anybody
    try:
        library = native._built(OPENCL)
    finally:
        os.umask(before)
    for path in (library.parent, library):
        for others in (0o020, 0o002):
            path.chmod(0o700 | others)
            with pytest.raises(UserError, match=f"{path}: can be written by other users, so .*; remove it, or set BL"):
                native._built(OPENCL)
        path.chmod(0o755)
        assert native._built(OPENCL) == library
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UserError, match=rf"{library.parent}: belongs to user {owner}, not to this one \({owner + 1}\)"):
        native._built(OPENCL)
    assert len(compiled) == 1


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file/native: the OpenCL runtime cannot be built there"):
        native._built(OPENCL)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(native, "cache_folder", homeless)
    with pytest.raises(UserError, match="set BLOCKFFN_CACHE"):
        native._built(OPENCL)


@pytest.mark.parametrize("kind", native.RUNTIMES)
def test_a_runtime_that_tvm_has_is_not_replaced(monkeypatch, kind):
    monkeypatch.setattr(native, "_built", lambda: pytest.fail("compiled without need"))
    monkeypatch.setattr(load_runtime(), "get_global_func", lambda *_, **__: print)
    load(kind)
