"""Several targets in one build, and what --list-targets tells."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest
from building import build as build_with
from checkpoints import MLA
from elf import LIBM, TVM_C_API, WEAK, archive_symbols, check_pages, objects, symbols
from small_library import with_limit

from blockffn_mlc import builder
from runtime_py.weights import load_weights
from schedules.tiles import GPU_TILES
from targets import TARGETS, find_target, tools

build = partial(build_with, "--no-mlc")  # those functions have tests of their own
ROOT = Path(__file__).resolve().parents[2]
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine lacks x86 instructions")


def shards(folder):
    """SHA-256 of every shard of an artifact, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("params_shard_*.bin")}


def config(folder):
    return json.loads((folder / "mlc-chat-config.json").read_text())


@pytest.mark.parametrize(("options", "words"), [
    (["--target", "toaster"], ["--target toaster", *TARGETS, "android:adreno"]),
    (["--target", "cpu,toaster"], ["--target toaster", "android:mali"]),
    (["--target", ""], ["--target ''", "name is empty", "opencl"]),
    (["--target", "android,cpu,,"], ["--target 'android,cpu,,'", "name is empty", "single commas"]),
    (["--target", "android", "--cpu", "haswell"], ["--cpu haswell", "not a processor", "--target cpu"]),
    (["--target", "cpu:aarch64", "--cpu", "haswell"], ["--cpu haswell", "aarch64", "cortex-a76"]),
    (["--target", "android", "--quantization", "q4f16_1", "--activations", "int8"],
     ["--activations int8", "target android", "dot products of bytes"]),
    (["--target", "android", "--system-lib-prefix", "a.b.c.d.e."], ["--system-lib-prefix a.b.c.d.e.", "my_model_"]),
])
def test_bad_targets_get_one_sentence(checkpoint, options, words):
    result = build("--model", checkpoint, *options, "--dry-run", check=False)
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 1 and all(word in error for word in words), error


@pytest.fixture
def no_libraries(monkeypatch):
    """Builds without their libraries: compiling those takes long."""
    monkeypatch.setattr(builder, "write_libraries", lambda *_: {})


@x86
def test_targets_with_the_same_layout_share_their_weights(checkpoint, tmp_path, no_libraries):
    """Weights lie in memory alike for GPUs and AVX-512: they are read and converted once."""
    result = build("--model", checkpoint, "--target", "android,cpu,android:generic", "--cpu", "skylake-avx512",
                   "--quantization", "q0f32", "-o", tmp_path / "out", "--json")
    names = ["android", "cpu", "android-generic"]
    folders = [tmp_path / "out" / name for name in names]
    assert [summary["artifact"] for summary in json.loads(result.stdout)] == [str(folder) for folder in folders]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert shards(folders[0]) == shards(folders[1]) == shards(folders[2]) != {}
    assert all((folders[0] / name).samefile(folder / name) for folder in folders for name in shards(folder))
    assert result.stderr.count(": weights as for android\n") == 2 and "converted again" not in result.stderr
    build("--model", checkpoint, "--target", "android", "--quantization", "q0f32", "-o", tmp_path / "alone")
    assert shards(tmp_path / "alone") == shards(folders[0])
    assert load_weights(folders[1]).keys() == load_weights(folders[0]).keys()


def test_weights_in_another_order_are_converted_again(checkpoint, tmp_path, no_libraries):
    result = build("--model", checkpoint, "--target", "android:mali,cpu:aarch64", "--quantization", "q0f32", "-o",
                   tmp_path)
    assert "cpu:aarch64: weights are converted again" in result.stderr
    assert shards(tmp_path / "android-mali") != shards(tmp_path / "cpu-aarch64")
    for name in ("android-mali", "cpu-aarch64"):
        target = config(tmp_path / name)["blockffn"]["target"]
        build("--model", checkpoint, "--target", target, "--quantization", "q0f32", "-o", tmp_path / "alone")
        assert shards(tmp_path / name) == shards(tmp_path / "alone")


def test_weights_are_shared_where_files_cannot_be_linked(checkpoint, tmp_path, no_libraries, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    build("--model", checkpoint, "--target", "android,android:mali", "--quantization", "q0f32", "-o", tmp_path)
    first, second = tmp_path / "android", tmp_path / "android-mali"
    assert shards(first) == shards(second) != {}
    assert not (first / "params_shard_0.bin").samefile(second / "params_shard_0.bin")


@pytest.mark.parametrize(("name", "cpu"), [*((name, "native") for name in TARGETS), ("cpu:aarch64", "cortex-a76")])
def test_an_artifact_says_what_its_kernels_take(name, cpu):
    """Rows of 4-bit matrices: codes, which are int32, on processors that multiply bytes only."""
    plan = builder.make_plan(MLA, find_target(name, cpu), "q4f16_1", 128, 64)
    activations, x = plan.chat["blockffn"]["activations"], plan.graph.kernels()["sparse_up"].params[0]
    assert (activations, str(x.ty.dtype)) in [("f32", "float32"), ("int8", "int32")]
    assert activations == plan.summary()["activations"] == "f32" or name.startswith("cpu")
    assert cpu != "cortex-a76" or activations == "int8"


def test_a_target_twice_is_built_once(checkpoint):
    plans = json.loads(build("--model", checkpoint, "--target", "android,android:adreno", "--dry-run", "--json").stdout)
    assert plans["target"] == "android" and plans["prefill_chunk"] == 128


@pytest.fixture(scope="module")
def phone(checkpoint):
    """An artifact for phones, with few variants of each kernel."""
    if not tools.ANDROID_LINKER.find():
        pytest.skip("no linker for Android (apt-get install lld)")
    out = checkpoint.parent / "phone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GPU_TILES, "adreno", replace(GPU_TILES["adreno"], token_tiles=(1, 4)))
        build("--model", checkpoint, "--target", "android", "--quantization", "q4f16_1", "-o", out,
              "--system-lib-prefix", "tiny_model_")
    return out


def test_an_artifact_for_phones_holds_both_forms(phone):
    ours = config(phone)["blockffn"]
    assert ours["target"] == "android" and ours["host"] == "aarch64 generic, neon"
    assert ours["library"] == "lib/blockffn-q4f16_1-android.so"
    assert ours["system_lib"] == {"path": "lib/blockffn-q4f16_1-android.tar", "prefix": "tiny_model_"}
    limits = asdict(find_target("android").limits)
    assert ours["device"] == {"kind": "opencl", "fp16": True} | limits | {
        "work_group": GPU_TILES["adreno"].items, "threadgroup_bytes": ours["device"]["threadgroup_bytes"]}
    assert 0 < ours["device"]["threadgroup_bytes"] <= limits["threadgroup_bytes"]
    kernels = json.loads((phone / "kernels.json").read_text())["origins"]
    files = objects(phone / ours["system_lib"]["path"])
    assert set(files) == {"lib0.o", "tiny_model_devc.o"}
    code = files["lib0.o"].getvalue()
    assert len(kernels) > 10 and all(f"__tvm_ffi_tiny_model_{name}\0".encode() in code for name in kernels)
    library = (phone / ours["library"]).read_bytes()
    assert all(f"\0__tvm_ffi_{name}\0".encode() in library for name in kernels) and b"tiny_model" not in library


def test_a_model_for_phones_needs_tvms_functions_alone(phone):
    ours = config(phone)["blockffn"]
    defined, undefined = archive_symbols(phone / ours["system_lib"]["path"])
    assert undefined <= TVM_C_API | LIBM
    assert {name for name in defined if "tiny_model_" not in name} <= WEAK
    library = phone / ours["library"]
    with library.open("rb") as file:
        defined, undefined = symbols(file, ".dynsym")
    assert undefined <= TVM_C_API | LIBM and "__tvm_ffi__library_bin" in defined
    check_pages(library)


def test_an_artifact_for_phones_says_how_to_run_it(phone):
    text = (phone / "README.md").read_text()
    ours = config(phone)["blockffn"]
    for word in (ours["library"], ours["system_lib"]["path"], '"tiny_model_"', "adb push", "cmake --build", "tvm_rpc",
                 "run_on_phone.py /data/local/tmp/tvm/phone", "--target android --quantization q4f16_1 --package",
                 "Kernels need half precision", "256 work-items", "256 MB"):
        assert word in text, word
    assert "$ANDROID_NDK" in text and "$" not in text.replace("$ANDROID_NDK", "")
    named = [name for line in text.splitlines() if line.startswith("| `") for name in line.split("`")[1:-1:2]]
    files = {str(path.relative_to(phone)) for path in phone.rglob("*") if path.is_file()} - {"README.md"}
    assert files == {path for path in files if any(fnmatch(path, name) for name in named)} != set()


def test_an_artifact_in_float32_needs_no_half_precision(checkpoint, tmp_path, no_libraries):
    build("--model", checkpoint, "--target", "android", "--quantization", "q0f32", "-o", tmp_path / "phone")
    text = (tmp_path / "phone" / "README.md").read_text()
    assert "Kernels compute in float32 throughout." in text and "half precision" not in text


@pytest.mark.parametrize(("limit", "allowed", "words"), [
    ("buffer_bytes", 4096, "a buffer of"), ("threadgroup_bytes", 16, "threadgroup memory of"),
    ("source_bytes", 100, "source text of")])
def test_a_kernel_beyond_a_limit_stops_the_build(checkpoint, tmp_path, monkeypatch, limit, allowed, words):
    target = with_limit(find_target("opencl"), limit, allowed)
    monkeypatch.setitem(TARGETS, "opencl", replace(TARGETS["opencl"], make=lambda: target))
    result = build("--model", checkpoint, "--target", "opencl", "--quantization", "q0f32", "-o", tmp_path / "out",
                   check=False)
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert re.match(rf"error: kernel \w+: {words} \d+ bytes, target opencl allows {allowed}; ", error), error
    assert result.returncode == 1 and not (tmp_path / "out" / "mlc-chat-config.json").exists()


@pytest.mark.parametrize("linker", [False, True])
def test_make_demo_says_when_nothing_is_built_for_phones(tmp_path, linker):
    for name in ["make", "sh", *(["ld.lld"] if linker else [])]:
        (tmp_path / name).symlink_to(shutil.which(name) or "/bin/true")
    commands = subprocess.run([tmp_path / "make", "-n", "demo"], env={"PATH": str(tmp_path)}, cwd=ROOT, check=True,
                              capture_output=True, text=True).stdout
    assert ("--target cpu,android" in commands) == linker
    assert ("no linker for Android was found; install lld (apt-get install lld)" in commands) != linker


def test_list_targets_says_what_is_here(monkeypatch):
    listed = json.loads(build("--list-targets", "--json").stdout)
    assert list(listed) == list(TARGETS) and listed["android"]["aliases"] == ["android:adreno"]
    assert all(tool["name"] and tool["purpose"] and tool["install"] for target in listed.values()
               for tool in target["tools"])
    assert listed["cpu"]["ready"] and listed["cpu"]["tools"][0]["found"]
    text = build("--list-targets").stdout
    assert all(name in text for name in TARGETS) and listed["cpu"]["tools"][0]["found"] in text


def test_list_targets_finds_drivers_where_the_loader_does(tmp_path, monkeypatch):
    """The loader takes a folder of drivers, or the file that names one."""
    driver = tmp_path / "some.icd"
    driver.write_text("libsome.so\n")
    monkeypatch.delenv("OCL_ICD_FILENAMES", raising=False)
    for vendors in (tmp_path, driver):
        monkeypatch.setenv("OCL_ICD_VENDORS", str(vendors))
        assert tools.OPENCL_DRIVER.find() == str(driver)


def test_list_targets_finds_headers_where_the_compiler_does(tmp_path, monkeypatch):
    header = tmp_path / "some" / "header.h"
    assert tools._header("some/header.h")() is None
    header.parent.mkdir()
    header.write_text("")
    monkeypatch.setenv("CPATH", str(tmp_path))
    assert tools._header("some/header.h")() == str(header)


def test_list_targets_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    monkeypatch.setenv("OCL_ICD_VENDORS", "/nowhere")
    monkeypatch.delenv("OCL_ICD_FILENAMES", raising=False)
    listed = json.loads(build("--list-targets", "--json").stdout)
    assert not listed["android"]["ready"] and listed["android"]["tools"][0]["found"] is None
    assert listed["opencl"]["ready"] and listed["opencl"]["tools"][1]["found"] is None  # a driver only runs it
    text = build("--list-targets").stdout
    assert {tool["name"]: tool["found"] for tool in listed["opencl"]["tools"]}["ninja"] is None
    for words in ("not found", "apt-get install ninja-build", "apt-get install lld", "ANDROID_NDK"):
        assert words in text, words


def test_a_missing_linker_stops_a_build_before_any_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    monkeypatch.setattr(tools, "_arm_compiler", lambda: None)
    monkeypatch.setattr(tools, "_lld", lambda: None)
    result = build("--model", checkpoint, "--target", "cpu,cpu:aarch64", "-o", tmp_path / "out", check=False)
    assert result.returncode == 1 and "no linker for aarch64" in result.stderr and "lld" in result.stderr
    assert not list(tmp_path.iterdir())
