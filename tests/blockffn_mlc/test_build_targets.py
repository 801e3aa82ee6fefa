"""Several targets in one build, and what --list-targets tells."""

import hashlib
import json

import pytest
from building import build

from blockffn_mlc import builder
from targets import TARGETS, tools


def shards(folder):
    """SHA-256 of every shard of an artifact, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("params_shard_*.bin")}


def config(folder):
    return json.loads((folder / "mlc-chat-config.json").read_text())


def test_targets_with_the_same_layout_share_their_weights(checkpoint, tmp_path, monkeypatch):
    """4-bit weights have one layout on all processors: they are read and converted once. (Without libraries: compiling
    them takes long.)"""
    monkeypatch.setattr(builder, "write_libraries", lambda *_: None)
    result = build("--model", checkpoint, "--target", "cpu:aarch64,cpu", "--quantization", "q4f16_1", "--activations",
                   "f32", "-o", tmp_path / "out", "--json")
    first, second = json.loads(result.stdout)
    assert [first["target"], second["target"]] == ["cpu:aarch64", "cpu"]
    folders = [tmp_path / "out" / name for name in ("cpu-aarch64", "cpu")]
    assert [first["artifact"], second["artifact"]] == [str(folder) for folder in folders]
    assert shards(folders[0]) == shards(folders[1]) != {}
    assert f"cpu: the weights are {folders[0]}'s" in result.stderr and "converted again" not in result.stderr
    assert (folders[0] / "params_shard_0.bin").samefile(folders[1] / "params_shard_0.bin")
    build("--model", checkpoint, "--target", "cpu", "--quantization", "q4f16_1", "--activations", "f32", "-o",
          tmp_path / "alone")
    assert shards(tmp_path / "alone") == shards(folders[1])
    assert [config(folder)["blockffn"]["host"].split()[0] for folder in folders][0] == "aarch64"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cpu", "cpu-aarch64"]


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
