"""The artifact that build.py leaves behind, and what it does when something goes wrong on the way."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from checkpoints import GQA, MLA, write_random_checkpoint

import build as command

ROOT = Path(__file__).resolve().parents[2]


def build(*arguments, check=True):
    """Run build.py in this process; its exit code and what it printed."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    assert code == 0 or not check, stderr.getvalue()
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("params_shard_*.bin"))}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    write_random_checkpoint(folder, MLA)
    return folder


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
    while len(list(staging.glob("params_shard_*.bin"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in staging.glob("params_shard_*.bin")}
    assert len(finished) >= 3 and not out.exists()
    result = json.loads(build(*arguments, "--json").stdout)
    assert result["kept_shards"] == len(finished) < result["shards"]
    assert not staging.exists()
    for name, changed in finished.items():
        assert (out / name).stat().st_mtime_ns == changed
    index = json.loads((out / "tensor-cache.json").read_text())
    assert all((out / shard["dataPath"]).stat().st_size == shard["nbytes"] for shard in index["records"])


def test_shards_of_another_model_are_not_kept(checkpoint, artifact, tmp_path):
    out, other = tmp_path / "artifact", tmp_path / "other"
    staging = tmp_path / "artifact.partial"
    staging.mkdir()
    size = (artifact[0] / "params_shard_0.bin").stat().st_size
    (staging / "params_shard_0.bin").write_bytes(bytes(size))
    (staging / "build.json").write_text('{"identity": "another"}')
    write_random_checkpoint(other, MLA)
    result = build("--model", checkpoint, "-o", out, "--quantization", "q0f32", "--json")
    assert json.loads(result.stdout)["kept_shards"] == 0
    assert contents(out) == contents(artifact[0])


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


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--target", "toaster"], 1, ["--target toaster", "cpu"]),
    (["--quantization", "q3"], 1, ["--quantization q3", "q0f32"]),
    (["--cpu", "i8086x"], 1, ["--cpu i8086x", "native"]),
    (["--model", "no/such/folder"], 1, ["no/such/folder", "demo"]),
    (["--model", "huge@random"], 1, ["huge", "xlarge"]),
    (["--context-window", "99999999"], 1, ["--context-window", "max_position_embeddings"]),
    (["--prefill-chunk", "100000"], 1, ["--prefill-chunk", "context window"]),
    (["--jobs", "0"], 2, ["--jobs"]),
    (["--no-such-option"], 2, ["--no-such-option"]),
])
def test_bad_options_get_one_sentence(arguments, code, words, checkpoint):
    model = [] if "--model" in arguments else ["--model", checkpoint]
    result = build(*model, *arguments, "--dry-run", check=False)
    assert result.returncode == code and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


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


def test_list_targets_names_the_cpu():
    assert "cpu" in json.loads(build("--list-targets", "--json").stdout)
