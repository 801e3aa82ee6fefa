"""Passes repeated kernel by kernel: the same bits as the compiled pass, and the work that each call is said to do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import build as compiler
from blockffn_mlc.errors import UserError
from runtime_py.bench.calls import Description
from runtime_py.bench.replay import Replay, causal_arguments
from runtime_py.bench.work import Routing, WorkCounter
from runtime_py.bench.worker import DENSE, SPARSE, Case, Setup, Worker
from runtime_py.engine import Engine
from schedules.activations import activation_shape

ROOT = Path(__file__).resolve().parents[2]
MODELS = [("mla_block", "q0f32"), ("gqa_block_linear", "q4f16_1")]
DEPTH = 20


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def folder(request, tmp_path_factory):
    name, quantization = request.param
    folder = tmp_path_factory.mktemp("bench") / name
    assert compiler.main(["--model", str(ROOT / "tests" / "golden" / name), "--quantization", quantization,
                          "-o", str(folder), "-q"]) == 0
    return folder


def activation_bytes(engine, width):
    """Bytes of one row of activations for a matrix."""
    shape, dtype = activation_shape(engine.artifact.chat_config["blockffn"]["activations"], (width,))
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.load(folder)


@pytest.fixture(scope="module")
def description(folder):
    return Description.load(folder)


@pytest.fixture(scope="module")
def worker(folder, engine):
    return Worker(Setup(str(folder), engine.threads, DEPTH))


def filled_caches(engine, rng):
    caches = engine.library.new_caches()
    ids = rng.integers(0, engine.artifact.config.vocab_size, DEPTH, np.int32)
    engine.library.forward(**causal_arguments(DEPTH, 1, 0) | {"ids": ids}, past=0, caches=caches)
    return caches


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (9, 9), (33, 2)])
def test_a_replay_computes_the_bits_of_the_pass(engine, description, tokens, rows, dense):
    caches, expected_caches = (filled_caches(engine, np.random.default_rng(1)) for _ in range(2))
    calls = description.passes["forward_dense" if dense else "forward"]
    replay = Replay(engine.library, calls, tokens, rows, DEPTH, caches)
    rng = np.random.default_rng(2)
    for _ in range(2):  # the second time in buffers that hold the first's values
        ids = rng.integers(0, engine.artifact.config.vocab_size, tokens, np.int32)
        logits, scores, _ = engine.library.forward(**causal_arguments(tokens, rows, DEPTH) | {"ids": ids}, past=DEPTH,
                                                   caches=expected_caches, dense=dense)
        seconds = replay.run(ids)
        assert len(seconds) == len(calls.calls) and min(seconds) > 0
        np.testing.assert_array_equal(replay.logits, logits)
        np.testing.assert_array_equal(np.stack(replay.scores), np.stack(scores))
        for cache, expected in zip(caches, expected_caches):
            np.testing.assert_array_equal(np.from_dlpack(cache), np.from_dlpack(expected))


def test_every_weight_and_kernel_is_described(engine, description):
    for calls in (description.passes[name] for name in ("forward", "forward_dense")):
        used = {name for call in calls.calls for name in call.inputs}
        assert set(engine.artifact.weights) <= used <= {*engine.artifact.weights, *calls.arguments, *calls.values}
        assert set(calls.arguments) <= used
        assert all(description.origins[call.kernel].startswith("schedules.") for call in calls.calls)


def test_forced_scores_replace_the_routers(engine, description):
    config, tokens = engine.artifact.config, 5
    replay = Replay(engine.library, description.passes["forward"], tokens, tokens, DEPTH,
                    filled_caches(engine, np.random.default_rng(1)))
    ids = np.arange(5, 5 + tokens)
    replay.run(ids)
    natural, scores = replay.logits.copy(), [layer.copy() for layer in replay.scores]
    replay.run(ids, [np.zeros((tokens, config.num_experts), np.float32)] * config.num_hidden_layers)
    assert not np.stack(replay.scores).any() and not np.array_equal(replay.logits, natural)
    replay.run(ids, scores)
    np.testing.assert_array_equal(replay.logits, natural)


@pytest.mark.parametrize("share", [0, 0.3, 1])
@pytest.mark.parametrize("tokens", [1, 10])
def test_the_union_has_the_share_asked_for(worker, share, tokens):
    config, users = worker.engine.artifact.config, max(1, tokens // 5)
    sample = worker.measure(Case(tokens, SPARSE, share), turn=1)
    union = round(share * config.num_experts)
    assert sample.whole is None
    assert sample.union == pytest.approx(union / config.num_experts)
    assert sample.active == pytest.approx(union * users / (config.num_experts * tokens))
    per_expert = config.hidden_size * config.expert_size
    experts = {name: kernel for name, kernel in sample.kernels.items() if kernel.experts}
    assert len(experts) == 2
    for kernel in experts.values():
        assert kernel.calls == config.num_hidden_layers
        assert kernel.operations == 2 * union * users * per_expert * config.num_hidden_layers


def test_bytes_of_experts_follow_the_union(worker):
    def weights_read(share):
        sample = worker.measure(Case(1, SPARSE, share), turn=1)
        return sum(kernel.nbytes for kernel in sample.kernels.values() if kernel.experts)

    config, mapped = worker.engine.artifact.config, worker.engine.artifact.weights
    experts = sum(weight.nbytes for weight in mapped.values() if weight.ndim > 3 and len(weight) == config.num_experts)
    per_expert = activation_bytes(worker.engine, config.expert_size)
    activations = config.num_hidden_layers * config.num_experts * 2 * per_expert  # written and read
    assert weights_read(1) - weights_read(0) == experts + activations


def test_a_natural_pass_is_timed_whole_as_well(worker):
    config = worker.engine.artifact.config
    sparse, dense = (worker.measure(Case(8, kind), turn=2) for kind in (SPARSE, DENSE))
    assert sparse.whole > 0 and dense.whole > 0 and 0 < sparse.active <= sparse.union <= 1
    pairs = 8 * config.num_experts * config.num_hidden_layers * config.hidden_size * config.expert_size
    assert {k.operations for k in dense.kernels.values() if k.experts} == {2 * pairs}
    assert {k.operations for k in sparse.kernels.values() if k.experts} == {round(2 * pairs * sparse.active)}


def test_the_artifacts_token_stream_is_fed(folder, engine, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    stream = [7, 8, 9, 10, 11]
    (copy / "token_stream.json").write_text(json.dumps(stream))
    worker = Worker(Setup(str(copy), engine.threads, 2))
    worker.measure(Case(2), turn=1)
    expected = engine.library.new_caches()
    for past, ids in ((0, [7, 8]), (2, [11, 7])):  # turn 1 follows turn 0's two tokens, and the stream starts again
        engine.library.forward(**causal_arguments(2, 2, past) | {"ids": np.array(ids, np.int32)}, past=past,
                               caches=expected)
    for cache, other in zip(worker.caches, expected):
        np.testing.assert_array_equal(np.from_dlpack(cache), np.from_dlpack(other))


def test_work_of_single_calls(engine, description):
    config, weights = engine.artifact.config, engine.artifact.weights
    calls, n = description.passes["forward"], 3
    counter = WorkCounter(engine.artifact, description, calls, {"n": n, "m": 2}, DEPTH)
    work = dict(zip((call.results or call.in_place for call in calls.calls),
                    counter.count([Routing(4, 6)] * config.num_hidden_layers)))
    by_kernel = {call.kernel: work[call.results or call.in_place] for call in calls.calls}
    embedding, head, router = by_kernel["embedding"], work[calls.logits,], by_kernel["router"]
    hidden, vocab = config.hidden_size, config.vocab_size
    table = weights[next(name for name in calls.calls[-1].inputs if name in weights)].nbytes
    assert (embedding.nbytes, embedding.operations) == (4 * n + 4 * n * hidden, 0)
    assert (head.nbytes, head.operations) == (
        table + 2 * (activation_bytes(engine, hidden) + 4 * vocab), 2 * 2 * hidden * vocab)
    assert router.operations == 2 * n * hidden * config.num_experts
    visible = sum(range(DEPTH + 1, DEPTH + n + 1))
    heads, projected = config.num_attention_heads, 0
    if config.is_mla:
        per_row = heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
        projected = n * heads * config.kv_lora_rank * config.head_dim
    else:
        per_row = heads * 2 * config.head_dim
    assert by_kernel["attention"].operations == 2 * (visible * per_row + projected)


def test_the_measuring_process_needs_neither_torch_nor_the_compiler(folder):
    code = ("import sys\nimport runtime_py.rpc.client, runtime_py.rpc.server\nfrom runtime_py.bench.worker import *\n"
            f"setup = Setup({str(folder)!r}, 1, 4)\nprepare(setup, 2)\nmeasure(setup, Case(2), 1)\n"
            "from runtime_py.bench import measure\nfrom runtime_py.bench.tasks import Task\n"
            f"setup, task = measure.Setup({str(folder)!r}, 1), Task('tg', 2, 4, 'sparse')\n"
            "measure.prepare(setup, [task])\nmeasure.measure(setup, task, 1)\n"
            "assert not {'torch', 'tvm'} & set(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_a_kernel_that_the_library_lacks_is_named(engine):
    with pytest.raises(UserError, match="has no kernel 'fast'"):
        engine.library.kernel("fast")


def test_the_command_measures_what_it_was_asked_to(folder):
    command = [sys.executable, "-m", "runtime_py", "bench", str(folder), "--kernels", "--threads", "1,2", "--tokens",
               "1,3", "--union", "0.5", "-r", "2", "-o", "json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    kernels = {call.kernel for call in Description.load(folder).passes["forward"].calls}
    for threads in (1, 2):
        for tokens in (1, 3):
            rows = [row for row in report["kernels"] if (row["threads"], row["tokens"]) == (threads, tokens)]
            assert {row["kernel"] for row in rows} == kernels
    assert all(row["ms_min"] <= row["ms"] <= row["ms_max"] for row in report["kernels"])
    assert [row["threads"] for row in report["bandwidth"]] == [1, 2] and report["rounds"] == 2
    expected = {(tokens, kind) for tokens in (1, 3) for kind in (SPARSE, DENSE)}
    assert {(row["tokens"], row["pass"]) for row in report["passes"]} == expected
    assert {round(row["union"], 1) for row in report["forced unions"]} == {0.5, 1.0}
    assert "round 2 of 2" in result.stderr
