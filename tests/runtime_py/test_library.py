"""The real thing: a compiled model against the original implementation's logits and router scores."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from compiled import nmse

import build as compiler
from blockffn_mlc.errors import UserError
from runtime_py import Engine
from runtime_py.library import _check_limits
from runtime_py.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "mla_block"
PARENTS = [-1, 0, 0, 1, 1, 2, 3, 5, -1]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled") / "golden"
    assert compiler.main(["--model", str(GOLDEN), "--quantization", "q0f32", "-o", str(folder), "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def engine(compiled):
    return Engine.load(compiled)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def ids(golden):
    return golden["ids"][0].tolist()


@pytest.mark.parametrize("chunk", [None, 7, 1])
def test_scores_equal_the_original_implementation(engine, golden, ids, chunk):
    score = engine.score(ids, chunk)
    assert nmse(score.logits, golden["logits"]) <= 1e-9
    assert nmse(score.router_scores, golden["router_scores"]) <= 1e-9
    assert ((score.router_scores != 0) == (golden["router_scores"] != 0)).all()


def test_tree_nodes_commit_and_rollback_are_bit_identical_to_plain_decoding(engine, ids):
    whole = engine.score(ids)
    session = engine.session()
    session.extend(ids[:20])
    nodes = [ids[20 + i] for i in range(len(PARENTS))]
    nodes[0], nodes[2], nodes[5], nodes[7] = ids[20:24]  # the path 0, 2, 5, 7 is what really follows
    output = session.tree(nodes, PARENTS)
    for position, node in enumerate((0, 2, 5, 7)):
        np.testing.assert_array_equal(output.logits[node], whole.logits[20 + position])
        np.testing.assert_array_equal(output.router_scores[:, node], whole.router_scores[:, 20 + position])
    session.commit([0, 2, 5, 7])
    np.testing.assert_array_equal(session.extend(ids[24:26]), whole.logits[25])
    session.rollback(22)
    np.testing.assert_array_equal(session.extend(ids[22:]), whole.logits[-1])


def test_sessions_do_not_disturb_each_other(engine, ids):
    expected = engine.score(ids).logits[-1]
    one, other = engine.session(), engine.session()
    one.extend(ids[:30])
    other.extend(ids[::-1])
    np.testing.assert_array_equal(one.extend(ids[30:]), expected)


def test_steps_of_two_sessions_in_turn_are_bit_identical_to_scoring(engine, ids):
    """The inputs of a step are kept and written in place; its logits are the caller's."""
    sequences = ids, ids[::-1]
    sessions = [engine.session() for _ in sequences]
    for session, sequence in zip(sessions, sequences):
        session.extend(sequence[:20])
    found = [[session.step(sequence[position]) for session, sequence in zip(sessions, sequences)]
             for position in range(20, 26)]
    for sequence, steps in zip(sequences, zip(*found)):
        np.testing.assert_array_equal(steps, engine.score(sequence[:26]).logits[20:])


def test_greedy_generation_equals_teacher_forcing(engine, ids):
    prompt = ids[:12]
    generation = engine.generate(prompt, max_tokens=24)
    list(generation)
    logits = engine.score([*prompt, *generation.ids]).logits
    assert generation.ids == np.argmax(logits[len(prompt) - 1:-1], axis=-1).tolist()


@pytest.mark.parametrize("mmap", [False, True])
def test_weights_and_caches_are_used_in_place(compiled, mmap):
    """The library reads the memory or the mapped files themselves, and writes caches that sessions own."""
    engine = Engine.load(compiled, mmap=mmap)
    weights = list(engine.artifact.weights.values())
    params = [np.from_dlpack(tensor) for tensor in engine.library._params]
    assert sorted(w.ctypes.data for w in weights) == sorted(p.ctypes.data for p in params)
    session = engine.session()
    caches = [np.from_dlpack(cache) for cache in session._caches]
    assert not any(cache.any() for cache in caches)
    session.extend([5, 6, 7])
    assert all(cache[:3].any() and not cache[3:].any() for cache in caches)


def test_memory_does_not_grow_with_every_new_length(compiled):
    """51 MB became 1 GB where every size kept a buffer of its own."""
    code = ("import re\nfrom pathlib import Path\nfrom runtime_py import Engine\n"
            f"engine = Engine.load({str(compiled)!r}, 1)\n"
            "def resident():\n"
            "    return int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
            "def score(length):\n    for _ in engine.score_chunks([5] * length):\n        pass\n"
            "score(510)\nbefore = resident()\n"
            "for length in range(350, 510, 2):\n    score(length)\n"
            "print(resident() - before)")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 16 << 10  # KiB


def test_scores_are_a_sequence_of_arrays(engine):
    outputs = list(engine.session().stream([5, 6, 7]))
    layers, config = outputs[0].layer_scores, engine.artifact.config
    assert len(layers) == config.num_hidden_layers and layers[-1].shape == (3, config.num_experts)
    np.testing.assert_array_equal(outputs[0].router_scores, np.array(list(layers)))
    with pytest.raises(IndexError):
        layers[len(layers)]


def test_loading_takes_no_more_than_the_weights(compiled):
    """The files' bytes are read straight to their place, not through copies; an import is not counted."""
    code = ("from runtime_py.weights import load_weights\nfrom runtime_py.stats import peak_memory\n"
            "import json, sys\nfrom pathlib import Path\n"
            "folder, size = Path(sys.argv[1]), 256 << 20\n"
            "record = dict(name='t', shape=[size], dtype='uint8', format='raw', nbytes=size, byteOffset=0)\n"
            "(folder / 'tensor-cache.json').write_text(json.dumps("
            "{'records': [dict(dataPath='t.bin', nbytes=size, records=[record])]}))\n"
            "with (folder / 't.bin').open('wb') as file:\n    file.truncate(size)\n"
            "before = peak_memory()\nload_weights(folder)\nprint((peak_memory() - before) / size)")
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True,
                                timeout=120)
    assert result.returncode == 0, result.stderr
    assert 0.9 < float(result.stdout) < 1.1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind threads")
def test_pinned_threads_have_a_core_each_and_change_no_result(compiled, engine, ids):
    code = ("import json, os, sys\nfrom runtime_py import Engine\nfrom runtime_py.tvm_runtime import physical_cores\n"
            "threads = min(2, physical_cores())\nbefore = set(os.listdir('/proc/self/task'))\n"
            f"engine = Engine.load({str(compiled)!r}, threads, pin=True)\n"
            f"logits = engine.score({ids[:20]}).logits\n"
            "workers = set(os.listdir('/proc/self/task')) - before\n"
            "own = [os.sched_getaffinity(int(task)) for task in (os.getpid(), *workers)]\n"
            "assert all(len(cpus) == 1 for cpus in own) and len(set.union(*own)) == len(own) == threads, own\n"
            "sys.stdout.buffer.write(logits.tobytes())")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout == engine.score(ids[:20]).logits.tobytes()


def test_failures_while_running_are_not_blamed_on_the_build(engine, monkeypatch):
    def exhausted(*_):
        raise RuntimeError("cannot allocate")
    monkeypatch.setattr(engine.library, "_forwards", [exhausted, exhausted])
    with pytest.raises(UserError, match="failed while running .cannot allocate"):
        engine.score([5])


def copy(compiled, tmp_path):
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def test_a_truncated_shard_is_refused_before_the_model_runs(compiled, tmp_path):
    folder = copy(compiled, tmp_path)
    shard = folder / "params_shard_0.bin"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 4096)
    with pytest.raises(UserError, match=f"params_shard_0.bin: expected {size} bytes, found {size - 4096}"):
        Engine.load(folder)


@pytest.mark.parametrize("change", ["name", "shape"])
def test_weights_of_another_build_are_refused(compiled, tmp_path, change):
    folder = copy(compiled, tmp_path)
    index = json.loads((folder / "tensor-cache.json").read_text())
    record = next(r for r in index["records"][0]["records"] if len(r["shape"]) == 2 and r["shape"][0] != r["shape"][1])
    record[change] = record["name"] + "x" if change == "name" else record["shape"][::-1]
    (folder / "tensor-cache.json").write_text(json.dumps(index))
    assert len(load_weights(folder)) == sum(len(shard["records"]) for shard in index["records"])
    with pytest.raises(UserError, match="rebuild the artifact"):
        Engine.load(folder)


@pytest.mark.parametrize(("section", "fields", "message"), [
    ("blockffn", {"cache": {"shape": [576, 1, 64], "dtype": "float32"}}, "refused its arguments .*64 vs. 128"),
    ("blockffn", {"cache": {"shape": [576, 1, 128], "dtype": "float16"}}, "refused its arguments"),
    ("model_config", {"num_hidden_layers": 2}, "refused its arguments"),
    ("model_config", {"prefill_chunk_size": 4096}, "'prefill_chunk_size': .* compiled for 512, found 4096"),
    ("model_config", {"context_window_size": 500}, "'context_window_size': .* compiled for 512, found 500")])
def test_a_configuration_of_another_build_is_refused(compiled, tmp_path, section, fields, message):
    folder = copy(compiled, tmp_path)
    path = folder / "mlc-chat-config.json"
    values = json.loads(path.read_text())
    values[section].update(fields)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        Engine.load(folder).score([5, 6])


def test_metadata_without_its_fields_is_named(engine):
    with pytest.raises(UserError, match="'context_window_size' is missing"):
        _check_limits(engine.artifact, {})


def test_the_command_line_runs_without_torch_and_without_the_compiler(compiled, tmp_path, ids):
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    code = ("import sys\nfrom runtime_py.cli import main\n"
            f"assert main(['score', {str(compiled)!r}, '--ids', {str(tmp_path / 'ids.json')!r}, '--json']) == 0\n"
            "assert not {'torch', 'tvm'} & set(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["predicted"] == len(ids) - 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(compiled, engine, tmp_path, ids, threads):
    np.save(tmp_path / "ids.npy", np.array(ids))
    command = ["score", str(compiled), "--ids", str(tmp_path / "ids.npy"), "--logits", str(tmp_path / "logits.npy"),
               "--threads", str(threads)]
    result = subprocess.run([sys.executable, "-m", "runtime_py", *command], cwd=ROOT, capture_output=True, text=True,
                            timeout=120)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), engine.score(ids).logits)
