"""Several targets in one build, and what --list-targets tells."""

import json

import pytest
from building import build

from targets import TARGETS, tools


@pytest.mark.parametrize(("options", "words"), [
    (["--target", "toaster"], ["--target toaster", *TARGETS, "android:adreno"]),
    (["--target", "cpu,toaster"], ["--target toaster", "android:mali"]),
    (["--target", ""], ["unknown target", "opencl"]),
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


def test_list_targets_says_what_is_here(monkeypatch):
    listed = json.loads(build("--list-targets", "--json").stdout)
    assert list(listed) == list(TARGETS) and listed["android"]["aliases"] == ["android:adreno"]
    assert all(tool["name"] and tool["purpose"] and tool["install"] for target in listed.values()
               for tool in target["tools"])
    assert listed["cpu"]["ready"] and listed["cpu"]["tools"][0]["found"]
    text = build("--list-targets").stdout
    assert all(name in text for name in TARGETS) and listed["cpu"]["tools"][0]["found"] in text


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
    assert "not found" in text and "apt-get install lld" in text and "ANDROID_NDK" in text


def test_a_missing_linker_stops_a_build_before_any_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    monkeypatch.setattr(tools, "_arm_compiler", lambda: None)
    monkeypatch.setattr(tools, "_lld", lambda: None)
    result = build("--model", checkpoint, "--target", "cpu,cpu:aarch64", "-o", tmp_path / "out", check=False)
    assert result.returncode == 1 and "no linker for aarch64" in result.stderr and "lld" in result.stderr
    assert not list(tmp_path.iterdir())
