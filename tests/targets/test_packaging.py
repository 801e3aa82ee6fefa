"""Libraries for phones: their symbols, their pages, who links them."""

import ctypes
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from checkpoints import GQA
from elf import LIBM, TVM_C_API, WEAK, archive_symbols, check_pages, objects, symbols
from elftools.elf.elffile import ELFFile
from small_library import WIDTH, small_graph
from tvm import relax

from blockffn_mlc.builder import make_plan
from blockffn_mlc.errors import UserError
from blockffn_mlc.libraries import system_lib_prefix, write_libraries
from targets import find_target, tools

PREFIXES = ("blockffn_first_", "blockffn_second_")


@pytest.fixture(autouse=True, scope="module")
def lld():
    if not shutil.which("ld.lld"):
        pytest.skip("no ld.lld (apt-get install lld)")


def write(folder, prefix, target="android"):
    write_libraries(small_graph(), find_target(target), folder / f"{prefix}lib", prefix, lambda stage: None)
    return folder / f"{prefix}lib.so", folder / f"{prefix}lib.tar"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """prefix -> its .so and .tar"""
    folder = tmp_path_factory.mktemp("libraries")
    return {prefix: write(folder, prefix) for prefix in PREFIXES}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_system_library_has_mlcs_symbols(libraries, prefix):
    _, archive = libraries[prefix]
    files = objects(archive)
    assert set(files) == {"lib0.o", f"{prefix}devc.o"}
    for file in files.values():
        elf = ELFFile(file)
        assert elf["e_machine"] == "EM_AARCH64" and elf["e_type"] == "ET_REL"
    defined, undefined = archive_symbols(archive)
    assert {f"{prefix}__tvm_ffi__library_bin", f"__tvm_ffi_{prefix}add"} <= defined
    assert undefined <= TVM_C_API | LIBM


def test_system_libraries_with_two_prefixes_fit_into_one_app(libraries, tmp_path):
    first, second = (archive_symbols(archive)[0] for _, archive in libraries.values())
    assert first & second <= WEAK
    paths = [tmp_path / f"{prefix}{name}" for prefix, (_, archive) in libraries.items() for name in objects(archive)]
    for path, file in zip(paths, (file for _, archive in libraries.values() for file in objects(archive).values())):
        path.write_bytes(file.getvalue())
    app = tmp_path / "app.so"
    subprocess.run(["ld.lld", "-shared", "-o", app, *paths], check=True)
    with open(app, "rb") as file:
        defined, undefined = symbols(file, ".dynsym")
    assert {f"__tvm_ffi_{prefix}add" for prefix in PREFIXES} <= defined and undefined <= TVM_C_API | LIBM


def test_kernels_for_processors_are_refused_where_tvm_cannot_rename_them(tmp_path):
    target = replace(find_target("cpu"), forms=(tools.system_library(),))
    graph = make_plan(GQA, target, "q0f32", 64, 16).graph
    with pytest.raises(UserError, match="^target cpu: TVM 0.27 makes no library for apps of kernels that prefetch"):
        write_libraries(graph, target, tmp_path / "lib", "tiny_model_", lambda stage: None)


def test_a_system_library_registers_itself_under_its_prefix(tmp_path):
    """For this machine, where it can be loaded: as an app does, by prefix."""
    target = replace(find_target("cpu"), forms=(tools.system_library(),))
    write_libraries(small_graph(device=False), target, tmp_path / "lib", "blockffn_here_", lambda stage: None)
    for name, file in objects(tmp_path / "lib.tar").items():
        (tmp_path / name).write_bytes(file.getvalue())
    app = tmp_path / "app.so"
    tvm_ffi_library = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    tools.cc.create_shared(str(app), [str(path) for path in tmp_path.glob("*.o")],
                           options=[str(tvm_ffi_library), f"-Wl,-rpath,{tvm_ffi_library.parent}"])
    ctypes.CDLL(str(app))
    library = tvm.get_global_func("ffi.SystemLib")("blockffn_here_")
    machine = relax.VirtualMachine(library, tvm.cpu())
    x = np.arange(2 * WIDTH, dtype="float32").reshape(2, 1, WIDTH)
    assert np.array_equal(machine["forward"](tvm.runtime.tensor(x)).numpy(), x + 1)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_shared_library_needs_tvm_alone_and_suits_large_pages(libraries, prefix):
    library, _ = libraries[prefix]
    with open(library, "rb") as file:
        elf = ELFFile(file)
        assert elf["e_machine"] == "EM_AARCH64" and elf["e_type"] == "ET_DYN"
        defined, undefined = symbols(file, ".dynsym")
        needed = [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
    assert {"__tvm_ffi__library_bin", "__tvm_ffi_add"} <= defined
    assert undefined <= TVM_C_API | LIBM and not needed
    check_pages(library)


def test_a_library_for_arm_linux(tmp_path):
    write_libraries(small_graph(device=False), find_target("cpu:aarch64"), tmp_path / "lib", "", lambda stage: None)
    with open(tmp_path / "lib.so", "rb") as file:
        assert ELFFile(file)["e_machine"] == "EM_AARCH64"
        defined, undefined = symbols(file, ".dynsym")
    assert "__tvm_ffi_add" in defined and undefined <= TVM_C_API | LIBM | {"memset", "memcpy"}


def test_the_ndks_compiler_links_where_there_is_one(tmp_path, monkeypatch):
    """A stand-in for clang that notes its arguments and calls lld."""
    clang = tmp_path / "ndk/toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang"
    clang.parent.mkdir(parents=True)
    clang.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/arguments\nexec ld.lld "${{@:1:$#-1}}"\n')
    clang.chmod(clang.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("ANDROID_NDK", str(tmp_path / "ndk"))
    assert tools.ANDROID_LINKER.find() == str(clang)
    library, _ = write(tmp_path, "blockffn_ndk_")
    arguments = (tmp_path / "arguments").read_text().split()
    assert "max-page-size=16384" in arguments and arguments[-1] == "-lm" and library.is_file()


@pytest.mark.parametrize("variable", ["ANDROID_NDK", "ANDROID_NDK_HOME"])
def test_a_folder_that_is_no_ndk_is_named(tmp_path, monkeypatch, variable):
    """Rather than passed over: lld would link a library that its user did not ask for."""
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert tools.ANDROID_LINKER.find() is None
    with pytest.raises(UserError, match=f"^{variable}={tmp_path}: not the folder of Android's NDK, .*unset it.* lld$"):
        find_target("android").check_tools()


@pytest.mark.parametrize(("name", "words"), [("android", ["ANDROID_NDK", "lld"]), ("cpu:aarch64", ["lld"]),
                                             ("opencl", ["CXX"]), ("cpu", ["CXX"])])
def test_a_missing_linker_gets_one_sentence(monkeypatch, name, words):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    monkeypatch.setattr(tools.cc, "get_cc", lambda: None)
    target = find_target(name)
    with pytest.raises(UserError) as error:
        target.check_tools()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_what_the_linker_says_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "_lld", lambda: "/bin/false")
    monkeypatch.setattr(tools, "_ndk_clang", lambda: None)
    with pytest.raises(UserError, match="lib.so: linking failed .*/bin/false"):
        write(tmp_path, "blockffn_bad_")


@pytest.mark.parametrize(("given", "model", "expected"), [
    (None, "demo", "blockffn_demo_q4f16_1_"), (None, "BlockFFN-3B-SFT", "blockffn_blockffn_3b_sft_q4f16_1_"),
    (None, "ü 1.2", "blockffn_1_2_q4f16_1_"), ("my_model_", "demo", "my_model_")])
def test_prefixes(given, model, expected):
    assert system_lib_prefix(given, model, "q4f16_1") == expected


@pytest.mark.parametrize("given", ["", "model", "a.b.c.d_", "1_model_", "no_underscore", "short_", "x" * 200 + "_"])
def test_a_prefix_that_is_no_symbol_is_refused(given):
    with pytest.raises(UserError, match="--system-lib-prefix .*my_model_"):
        system_lib_prefix(given, "demo", "q0f32")
