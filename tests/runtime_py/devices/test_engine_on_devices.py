"""Engines on devices: the same tokens as in numpy, and only what a choice needs comes back."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from counters import counter
from device_toy import SLOTS, VOCAB, WIDTH, expected_logits, write_device_artifact
from process_memory import growth

from blockffn_mlc.errors import UserError
from runtime_py import Engine
from runtime_py.cli import main
from runtime_py.devices import Logits
from runtime_py.drafters.scripted import ScriptedDrafter
from runtime_py.sampling import Sampler, Sampling

ROOT = Path(__file__).resolve().parents[3]
PROMPT = [5, 6, 7, 250, 17]


@pytest.fixture(scope="module")
def device(each_device):
    return each_device


@pytest.fixture(scope="module")
def toy(device, tmp_path_factory):
    folder = tmp_path_factory.mktemp(device.kind) / "toy"
    return folder, write_device_artifact(folder, device.kind)


@pytest.fixture(scope="module")
def on_device(toy, device):
    return Engine.load(toy[0], device=device.name)


@pytest.fixture
def read_back(on_device, monkeypatch):
    """Bytes of every transfer from the device."""
    sizes, copy_out = [], on_device.library._device._copy_out

    def record(tensor, address, nbytes):
        sizes.append(nbytes)
        copy_out(tensor, address, nbytes)
    monkeypatch.setattr(on_device.library._device, "_copy_out", record)
    return sizes


@pytest.fixture(scope="module")
def greedy(toy):
    """The prompt and 40 tokens behind it, by numpy."""
    ids = list(PROMPT)
    for _ in range(40):
        ids.append(int(expected_logits(toy[1], ids)[-1].argmax()))
    return ids


def generated(engine, prompt=PROMPT, max_tokens=40, **options):
    generation = engine.generate(prompt, max_tokens, **options)
    list(generation)
    return generation


@pytest.mark.parametrize("chunk", [None, 7, 1])
def test_scores_equal_numpy(on_device, toy, chunk):
    ids = list(range(5, 45))
    score, expected = on_device.score(ids, chunk), expected_logits(toy[1], ids)
    assert type(score.logits) is np.ndarray
    np.testing.assert_allclose(score.logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert score.router_scores.shape == (2, 40, 12) and (score.router_scores > 0).any()


@pytest.mark.parametrize("draft", ["none", "ngram", "scripted"])
def test_greedy_tokens_equal_numpy_with_and_without_drafts(on_device, device, greedy, draft):
    launches = counter(device.kind, "launches")
    drafter = ScriptedDrafter(greedy, 0.3, VOCAB, seed=1) if draft == "scripted" else draft
    generation = generated(on_device, draft=drafter, tree_size=None if draft == "none" else 8)
    assert generation.ids == greedy[len(PROMPT):]
    assert counter(device.kind, "launches") > launches + 40
    if draft == "scripted":
        assert max(generation.stats.accept_lengths) > 1


def test_greedy_decoding_reads_a_token_and_its_logit_per_row(on_device, read_back):
    session = on_device.session()
    sample = Sampler(Sampling())
    token = sample(session.extend(PROMPT))
    assert read_back == [4, 4]
    session.step(token)
    assert read_back == [4, 4]  # nothing was asked of the logits
    output = session.tree([token, 3, 4], [-1, 0, 0])
    assert isinstance(output.logits, Logits) and len(output.logits) == 3
    assert [sample(output.logits[row]) for row in range(3)] == np.asarray(output.logits).argmax(-1).tolist()
    assert read_back == [4, 4, 12, 12, 3 * VOCAB * 4]


@pytest.mark.parametrize("sampling", [Sampling(1.5, seed=3), Sampling(repetition_penalty=1.3)])
def test_sampling_reads_single_rows_and_draws_the_same_tokens(on_device, read_back, sampling):
    found = generated(on_device, sampling=sampling, draft="none").ids
    assert set(read_back) == {VOCAB * 4}
    ids, sample = list(PROMPT), Sampler(sampling)
    for token in found:
        assert token == sample(on_device.score(ids).logits[-1], ids)
        ids.append(token)


def test_rows_are_arrays_to_numpy(on_device):
    logits = on_device.session().tree([5, 6, 7], [-1, 0, 1]).logits
    whole = np.asarray(logits)
    np.testing.assert_array_equal(np.array([logits[0], logits[1], logits[-1]]), whole)
    with pytest.raises(IndexError):
        logits[3]


def test_weights_and_caches_are_on_the_device_once(toy, device):
    gc.collect()
    before = counter(device.kind, "memory_in_use", device.index)
    engine = Engine.load(toy[0], device=device.name)
    weights, inputs = sum(weight.nbytes for weight in toy[1].values()), 6 * 4
    assert counter(device.kind, "memory_in_use", device.index) - before == weights + inputs
    assert "params_shard" not in Path("/proc/self/maps").read_text()  # the files were let go
    for name, weight in toy[1].items():
        np.testing.assert_array_equal(device.host(engine.library.weights[name]), weight)
    sessions = [engine.session(), engine.session()]
    caches = len(sessions) * 2 * SLOTS * WIDTH * 4
    assert counter(device.kind, "memory_in_use", device.index) - before == weights + inputs + caches
    del engine, sessions
    gc.collect()
    assert counter(device.kind, "memory_in_use", device.index) == before


def test_sessions_do_not_disturb_each_other(on_device, greedy):
    one, other = on_device.session(), on_device.session()
    one.extend(greedy[:20])
    other.extend(greedy[::-1])
    expected = np.asarray(on_device.session().extend(greedy[:30]))
    np.testing.assert_allclose(np.asarray(one.extend(greedy[20:30])), expected, rtol=1e-5, atol=1e-4)


def test_an_engine_outlives_others_of_its_artifact(toy, device, greedy):
    kept, dropped = (Engine.load(toy[0], device=device.name) for _ in range(2))
    assert generated(dropped, draft="none").ids == greedy[len(PROMPT):]
    del dropped
    for _ in range(10):  # whose memory may be that one's
        assert generated(Engine.load(toy[0], device=device.name), draft="none").ids == greedy[len(PROMPT):]
    assert generated(kept, draft="none").ids == greedy[len(PROMPT):]


def test_nothing_leaks_over_loads_of_an_artifact(toy, device, tmp_path):
    folder = shutil.copytree(toy[0], tmp_path / "toy")  # of which nobody else has the library

    def load(times=100):
        for _ in range(times):
            generated(Engine.load(folder, device=device.name), max_tokens=2, draft="none")

    def held():
        gc.collect()
        return counter(device.kind, "objects"), counter(device.kind, "memory_in_use", device.index)

    load(10)
    before, grown = held(), growth(load)
    assert held() == before
    assert grown.allocated < 512 << 10 and grown.resident < 4 << 20  # modules that are never freed take 7 MB


def test_logits_that_are_not_finite_are_refused(toy, device, tmp_path):
    folder = shutil.copytree(toy[0], tmp_path / "damaged")
    weights = toy[1] | {"lm_head": np.full_like(toy[1]["lm_head"], np.nan)}
    (folder / "params_shard_0.bin").write_bytes(b"".join(weight.tobytes() for weight in weights.values()))
    with pytest.raises(UserError, match="the largest logit is nan"):
        generated(Engine.load(folder, device=device.name))


def test_the_device_must_be_what_the_artifact_was_built_for(toy, artifact_folder, device):
    kind = device.kind
    with pytest.raises(UserError, match=f"built for target '{kind}', which device 'cpu' cannot run; .*--target cpu"):
        Engine.load(toy[0], device="cpu")
    with pytest.raises(UserError, match=f"'cpu', which device '{kind}:0' cannot run; .*--target {kind}"):
        Engine.load(artifact_folder, device=kind)


@pytest.mark.parametrize("device_name", ["{}:99", "npu", "{}:", "cpu:1", ""])
def test_devices_that_are_not_there_are_refused(toy, device, device_name):
    device_name = device_name.format(device.kind)
    with pytest.raises(UserError, match=f"device '{device_name}': .*python -m runtime_py devices"):
        Engine.load(toy[0], device=device_name)


def test_neither_torch_nor_the_compiler_is_loaded(toy, tmp_path):
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(PROMPT))
    code = ("import sys\nfrom runtime_py.cli import main\n"
            f"assert main(['generate', {str(toy[0])!r}, '--ids', {str(ids)!r}, '--draft', 'none']) == 0\n"
            "assert main(['devices']) == 0\nassert not {'torch', 'tvm'} & set(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_kernels_are_timed_on_the_processor_alone(toy, device, capsys):
    assert main(["bench", str(toy[0]), "--kernels"]) == 1
    assert f"built for target {device.kind!r}; kernels are timed on the processor alone" in capsys.readouterr().err
    assert main(["bench", str(toy[0]), "--kernels", "--device", device.name]) == 1
    assert f"--device {device.name}: kernels are timed on the processor alone" in capsys.readouterr().err


def test_failures_of_the_driver_name_the_kernel(on_device, monkeypatch):
    def refuse(*_):
        raise RuntimeError("OpenCL: compiling kernel mix failed: CL_BUILD_PROGRAM_FAILURE (-11)\nline 3: no such name")
    monkeypatch.setattr(on_device.library, "_forwards", [refuse, refuse])
    with pytest.raises(UserError, match=r"failed while running .OpenCL: compiling kernel mix failed: CL_BUILD_PROGRAM_"
                                        r"FAILURE \(-11\)\)\nline 3: no such name$"):
        on_device.score([5])


def test_the_command_line_runs_on_the_device(toy, device, tmp_path, capsys, greedy):
    (tmp_path / "ids.json").write_text(json.dumps(PROMPT))
    assert main(["generate", str(toy[0]), "--device", device.name, "--ids", str(tmp_path / "ids.json"), "--max-tokens",
                 "5", "--draft", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == device.name and found["ids"] == greedy[len(PROMPT):len(PROMPT) + 5]
    assert main(["score", str(toy[0]), "--device", device.name, "--ids", str(tmp_path / "ids.json"), "--logits",
                 str(tmp_path / "l.npy")]) == 0
    assert np.load(tmp_path / "l.npy").shape == (len(PROMPT), VOCAB)


@pytest.mark.parametrize(("field", "needed", "fact", "found"), [
    ("fp16", True, "fp16", False), ("work_group", 256, "max_work_group_size", 128),
    ("threadgroup_bytes", 32768, "local_memory_bytes", 16384),
    ("buffer_bytes", VOCAB * WIDTH * 4, "max_allocation_bytes", 1000)])
def test_a_device_that_lacks_what_kernels_were_built_for_is_refused(toy, device, tmp_path, monkeypatch, field, needed,
                                                                    fact, found):
    folder = shutil.copytree(toy[0], tmp_path / "limited")
    path = folder / "mlc-chat-config.json"
    config = json.loads(path.read_text())
    config["blockffn"]["device"] = {"kind": "opencl", "fp16": True, "work_group": 256, "threadgroup_bytes": 32768,
                                    "buffer_bytes": 1 << 30}
    path.write_text(json.dumps(config))
    facts = {"fp16": True, "max_work_group_size": 256, "local_memory_bytes": 32768, "max_allocation_bytes": 1 << 20}
    monkeypatch.setattr("runtime_py.library.device_facts", lambda name: {device.name: facts}[name])
    assert generated(Engine.load(folder, device=device.name), max_tokens=1, draft="none").ids
    facts[fact] = found
    in_use = counter(device.kind, "memory_in_use", device.index)
    with pytest.raises(UserError, match=f"device '{device.name}': field '{field}': the artifact needs {needed}, the "
                                        f"device has {found}; rebuild .* or choose another --device"):
        Engine.load(folder, device=device.name)
    gc.collect()
    assert counter(device.kind, "memory_in_use", device.index) <= in_use  # before any weight is uploaded


def test_kernels_that_the_device_cannot_run_are_refused(on_device, device, monkeypatch):
    class Demanding:
        def get_function(self, name, query_imports):
            assert name == "check_device" and query_imports
            return self.refuse

        def refuse(self, index):
            raise RuntimeError(f"Vulkan: kernel mix needs Int8, which device {index} lacks")

    if device.kind == "vulkan":
        (kernels,) = on_device.library._library.module.imports
        assert kernels.get_function("check_device", query_imports=True)(device.index) is None
        with pytest.raises(RuntimeError, match="no device 99"):
            kernels.get_function("check_device", query_imports=True)(99)
    module = SimpleNamespace(imports=[Demanding()])
    monkeypatch.setattr(on_device.library, "_library", SimpleNamespace(module=module))
    with pytest.raises(UserError, match=f"device '{device.name}': Vulkan: kernel mix needs Int8, which device "
                                        f"{device.index} lacks; rebuild with another --target or --quantization, or"):
        on_device.library._check_kernels()


def test_waiting_for_a_device(on_device, monkeypatch):
    waits = []
    monkeypatch.setattr(on_device.library, "wait", lambda wait=on_device.library.wait: waits.append(wait()))
    generated(on_device, max_tokens=5, draft="none")
    assert len(waits) == 5  # the prompt, and four steps
