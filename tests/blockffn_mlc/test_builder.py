"""The artifact that build.py leaves behind, and what it does when something goes wrong on the way."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tvm
from building import build
from checkpoints import GQA, MLA, write_random_checkpoint

from blockffn_mlc import compile, staging
from runtime_py.weights import load_weights
from schedules.layout import unpack_rows
from targets import tools

ROOT = Path(__file__).resolve().parents[2]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("params_shard_*.bin"))}


@pytest.fixture(scope="module")
def artifact(checkpoint):
    out = checkpoint.parent / "artifact"
    result = build("--model", checkpoint, "-o", out, "--quantization", "q0f32", "--json")
    return out, json.loads(result.stdout)


def test_the_artifact_has_mlcs_layout(artifact):
    out, summary = artifact
    assert summary["functions"] == ["_metadata", "commit", "forward", "forward_dense"]
    assert not list(out.parent.glob("*.partial")) and not list(out.rglob("*.tmp"))
    config = json.loads((out / "mlc-chat-config.json").read_text())
    assert (out / config["blockffn"]["library"]).is_file()
    assert config["blockffn"]["activations"] == summary["activations"] == "f32"
    assert config["model_config"]["vocab_size"] == config["vocab_size"] == MLA.vocab_size
    assert config["conv_template"]["system_prefix_token_ids"] == [MLA.bos_token_id]
    for shard in json.loads((out / "tensor-cache.json").read_text())["records"]:
        assert (out / shard["dataPath"]).stat().st_size == shard["nbytes"]
        end = 0
        for record in shard["records"]:
            assert record["byteOffset"] % 64 == 0 and record["byteOffset"] >= end and record["format"] == "raw"
            end = record["byteOffset"] + record["nbytes"]


def test_tvms_own_loader_reads_the_weights(artifact):
    out, summary = artifact
    tvm.get_global_func("vm.builtin.tensor_cache.load")(str(out), tvm.cpu().dlpack_device_type(), 0)
    get = tvm.get_global_func("vm.builtin.tensor_cache.get")
    norm = get("norm.weight").numpy()
    tvm.get_global_func("vm.builtin.tensor_cache.clear")()
    stored = np.fromfile(out / "params_shard_0.bin", np.float32)
    assert norm.shape == (MLA.hidden_size,) and norm.tobytes() in stored.tobytes()


def test_a_second_build_replaces_the_first(checkpoint, artifact, tmp_path):
    out = tmp_path / "artifact"
    for quantization in ("q0f32", "q0f16"):
        build("--model", checkpoint, "-o", out, "--quantization", quantization, "-q")
        assert json.loads((out / "mlc-chat-config.json").read_text())["quantization"] == quantization
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_the_number_of_jobs_does_not_change_the_weights(checkpoint, artifact, tmp_path):
    build("--model", checkpoint, "-o", tmp_path / "a", "--quantization", "q0f32", "--jobs", 1)
    assert contents(tmp_path / "a") == contents(artifact[0])


def test_a_killed_build_leaves_no_artifact_and_resumes(tmp_path):
    out = tmp_path / "artifact"
    arguments = ["--model", "small@random", "-o", out, "--context-window", "256", "-q"]
    process = subprocess.Popen([sys.executable, ROOT / "build.py", *map(str, arguments)], cwd=ROOT)
    staging = tmp_path / "artifact.partial"
    deadline = time.monotonic() + 120
    while len(journal_lines(staging)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = [line.split()[0] for line in journal_lines(staging)]
    changed = {name: (staging / name).stat().st_mtime_ns for name in finished}
    assert len(finished) >= 3 and not out.exists()
    result = json.loads(build(*arguments, "--json").stdout)
    assert result["kept_shards"] == len(finished) < result["shards"]
    assert not staging.exists()
    assert all((out / name).stat().st_mtime_ns == time for name, time in changed.items())
    index = json.loads((out / "tensor-cache.json").read_text())
    for shard in index["records"]:
        assert hashlib.md5((out / shard["dataPath"]).read_bytes()).hexdigest() == shard["md5sum"]


def journal_lines(staging):
    """Complete lines about shards in the journal of an unfinished build."""
    with contextlib.suppress(OSError):
        return [line for line in (staging / "build.journal").read_text().split("\n")[1:-1]]
    return []


def interrupt(checkpoint, out, monkeypatch):
    """Leave what a build leaves that is stopped just before the artifact gets its name."""
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert build("--model", checkpoint, "-o", out, "--quantization", "q0f32", check=False).returncode == 130
    assert not out.exists()
    return out.with_name(f"{out.name}.partial")


def test_what_an_interrupted_build_finished_is_kept(checkpoint, artifact, tmp_path, monkeypatch):
    out = tmp_path / "artifact"
    leftover = interrupt(checkpoint, out, monkeypatch)
    (leftover / "lib" / "blockffn-half-linked.so").write_text("junk")
    result = json.loads(build("--model", checkpoint, "-o", out, "--quantization", "q0f32", "--json").stdout)
    assert result["kept_shards"] == result["shards"]
    assert contents(out) == contents(artifact[0]) and len(list((out / "lib").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert not {".lock", "build.journal"} & {path.name for path in out.iterdir()}


def test_an_interruption_while_tvm_compiles_is_one(checkpoint, tmp_path, monkeypatch):
    @tvm.transform.module_pass(opt_level=0)
    def interrupted(module, context):
        raise KeyboardInterrupt

    monkeypatch.setattr(compile, "_LOWERING", [interrupted])
    result = build("--model", checkpoint, "-o", tmp_path / "artifact", check=False)
    assert result.returncode == 130 and "interrupted; finished weights are kept" in result.stderr
    assert "\n\n" not in result.stderr  # of bars, which only terminals show
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", ["shard", "journal", "another model"])
def test_what_is_not_valid_is_not_kept(checkpoint, artifact, tmp_path, monkeypatch, spoil):
    out = tmp_path / "artifact"
    leftover = interrupt(checkpoint, out, monkeypatch)
    shard = leftover / "params_shard_0.bin"
    if spoil == "shard":
        shard.write_bytes(bytes(shard.stat().st_size))
    elif spoil == "journal":
        (leftover / "build.journal").write_bytes(b"\xff\x00{")
    else:
        os.utime(checkpoint / "model.safetensors")  # the source has changed
    result = json.loads(build("--model", checkpoint, "-o", out, "--quantization", "q0f32", "--json").stdout)
    assert result["kept_shards"] == 0 and contents(out) == contents(artifact[0])


def test_an_artifact_being_replaced_is_restored(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "artifact"
    build("--model", checkpoint, "-o", out, "--quantization", "q0f32")
    replace = os.replace

    def stop_after_the_first(source, target):
        replace(source, target)
        if Path(target).name == ".replaced":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "replace", stop_after_the_first)
        assert build("--model", checkpoint, "-o", out, "--quantization", "q0f16", check=False).returncode == 130
    assert not out.exists()
    assert build("--model", checkpoint, "-o", out, "--quantization", "q0f16", "--cpu", "native",
                 "--jobs", 1).returncode == 0
    assert json.loads((out / "mlc-chat-config.json").read_text())["quantization"] == "q0f16"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"] and not (out / ".replaced").exists()


def test_two_builds_of_one_artifact_do_not_meet(checkpoint, tmp_path):
    out = tmp_path / "artifact"
    with staging.staging_folder(out, "first"):
        result = build("--model", checkpoint, "-o", out, check=False)
        assert result.returncode == 1 and "another build" in result.stderr


def test_nothing_of_the_users_is_touched(checkpoint, tmp_path):
    out = tmp_path / "artifact"
    for folder in ("artifact.old", "artifact.partial"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "precious.txt").write_text("mine")
    result = build("--model", checkpoint, "-o", out, check=False)
    assert result.returncode == 1 and "artifact.partial" in result.stderr and "move it away" in result.stderr
    (tmp_path / "artifact.partial").rename(tmp_path / "elsewhere")
    build("--model", checkpoint, "-o", out)
    build("--model", checkpoint, "-o", out)
    assert all((tmp_path / folder / "precious.txt").read_text() == "mine" for folder in ("artifact.old", "elsewhere"))


def test_a_full_disk_gets_one_sentence(checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "params_shard_0.bin")

    monkeypatch.setattr(os, "fsync", full)
    result = build("--model", checkpoint, "-o", tmp_path / "artifact", check=False)
    assert result.returncode == 1 and "No space left" in result.stderr and "params_shard_0.bin" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_compiler_gets_one_sentence(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(tools.cc, "get_cc", lambda: None)
    result = build("--model", checkpoint, "-o", tmp_path / "artifact", check=False)
    assert result.returncode == 1 and "C++ compiler" in result.stderr and "CXX" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_current_folder_can_become_the_artifact(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build("--model", checkpoint, "-o", ".")
    assert (tmp_path / "here" / "mlc-chat-config.json").is_file()


@pytest.mark.parametrize(("name", "text"), [
    ("tokenizer.json", "{}"), ("tokenizer.json", "not json"), ("generation_config.json", "[1]"),
    ("generation_config.json", '{"temperature": NaN}'), ("generation_config.json", '{"top_p": "high"}')])
def test_bad_side_files_are_refused_before_any_work(checkpoint, tmp_path, name, text):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    (model / name).write_text(text)
    result = build("--model", model, "-o", tmp_path / "out", check=False)
    assert result.returncode == 1 and name in result.stderr and "Traceback" not in result.stderr
    assert "compile" not in result.stderr and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_bad_weights_stop_the_build_and_leave_nothing(tmp_path):
    write_random_checkpoint(tmp_path / "model", GQA, dtype="float32")
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    result = build("--model", tmp_path / "model", "-o", tmp_path / "out", check=False)
    assert result.returncode == 1 and "NaN" in result.stderr and result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    tensors = write_random_checkpoint(tmp_path / "model", MLA, dtype="float32")
    path = tmp_path / "model" / "model.safetensors"
    needle = tensors["model.norm.weight"].tobytes()
    path.write_bytes(path.read_bytes().replace(needle, np.full(MLA.hidden_size, 1e5, np.float32).tobytes()))
    result = build("--model", tmp_path / "model", "-o", tmp_path / "out", "--quantization", "q0f16", check=False)
    assert result.returncode == 1
    assert "model.norm.weight" in result.stderr and "float16" in result.stderr and "q0f32" in result.stderr


def test_a_folder_that_is_no_artifact_is_not_overwritten(checkpoint, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    result = build("--model", checkpoint, "-o", tmp_path, check=False)
    assert result.returncode == 1 and "holds no artifact" in result.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_dry_run_writes_nothing_and_predicts_the_sizes(checkpoint, artifact, tmp_path):
    plan = json.loads(build("--model", checkpoint, "-o", tmp_path / "out", "--quantization", "q0f32", "--dry-run",
                            "--json").stdout)
    assert not (tmp_path / "out").exists()
    out, summary = artifact
    assert {key: summary[key] for key in plan} == plan
    stored = sum(len(data) for data in contents(out).values())
    assert 0 <= stored - plan["weight_bytes"] < 64 * plan["tensors"]


@pytest.mark.parametrize("quantization, dtype", [("q0f32", np.float32), ("q0f16", np.float16)])
def test_stored_weights_are_the_checkpoints_rounded_once(tmp_path, quantization, dtype):
    """MLC's rule for q0f16 and q0f32: the checkpoint's value in the model's dtype, bit for bit."""
    tensors = write_random_checkpoint(tmp_path / "model", MLA)
    build("--model", tmp_path / "model", "-o", tmp_path / "out", "--quantization", quantization)
    stored = load_weights(tmp_path / "out")
    for name, source in (("embed_tokens.weight", "model.embed_tokens.weight"), ("lm_head.weight", "lm_head.weight"),
                         ("layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight")):
        rows = unpack_rows(stored[name], len(tensors[source]))
        assert rows.dtype == dtype and np.array_equal(rows, tensors[source].astype(dtype))
    for part in ("up_proj", "down_proj"):
        source = tensors[f"model.layers.0.mlp.{part}"]
        rows = unpack_rows(stored[f"layers.0.mlp.{part}"], source.shape[1])
        assert rows.dtype == dtype and np.array_equal(rows, source.astype(dtype))
    norm = stored["layers.0.mlp.router_norm_weight"]
    assert norm.dtype == dtype and np.array_equal(norm, tensors["model.layers.0.mlp.router_norm.weight"].astype(dtype))
