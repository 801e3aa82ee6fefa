"""The check of a device: right kernels pass in every format, and every way to be wrong is found."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from building import build
from machine import few_token_tiles

import build as command
from blockffn_mlc.errors import UserError
from runtime_py.cli import main
from runtime_py.engine import Engine
from runtime_py.selftest import checks
from runtime_py.selftest.bounds import Bound, Mismatch, Written
from runtime_py.selftest.cases import CASES
from runtime_py.selftest.checks import check_kernels
from runtime_py.tvm_runtime import aligned_zeros
from schedules import activations, cpu, gpu
from targets import find_targets

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
MODELS = {
    "demo": ["--quantization", "q0f32"],
    "gqa": ["--model", GOLDEN / "gqa_block_linear", "--draft", GOLDEN / "eagle_gqa", "--quantization", "q4f16_1"],
}
_folders = {}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """artifact(name): the folder of a model, built once."""
    def artifact(name):
        if name not in _folders:
            _folders[name] = tmp_path_factory.mktemp("verify") / name
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(command, "find_targets", lambda *names: list(map(few_token_tiles, find_targets(*names))))
                build(*MODELS[name], "-o", _folders[name], "-q")
        return _folders[name]
    yield artifact
    _folders.clear()


@pytest.fixture(scope="module")
def engine(artifact):
    return Engine.load(artifact("demo"))


@pytest.mark.parametrize("name", MODELS)
def test_an_artifact_verifies(artifact, name, capsys):
    assert main(["verify", str(artifact(name)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["device"] == "cpu" and found["tokens"] == list(checks.TOKENS)
    kernels = {kernel["kernel"]: kernel for kernel in found["kernels"]}
    assert set(kernels) == set(json.loads((artifact(name) / "kernels.json").read_text())["origins"])
    assert {kernel["factory"] for kernel in kernels.values()} >= {
        "linear", "attention", "sparse_up", "sparse_down", "top_k", "gated_silu", "encode", "commit"}
    for kernel in kernels.values():
        assert kernel["problem"] is None and kernel["calls"] >= 5 and kernel["launches"] is None
        assert 0 <= kernel["nmse"] <= kernel["bound"] and 0 <= kernel["error"] <= 1
    assert kernels["qkv_proj"]["weights"] and kernels["qkv_proj"]["nmse"] > 0


def test_damaged_weights_are_refused(artifact, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(artifact("demo"), copy)
    shard = copy / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(copy)]) == 1
    assert re.search(rf"error: {shard}: its MD5 is \w{{32}}, tensor-cache.json says \w{{32}}", capsys.readouterr().err)


def test_every_kernel_on_two_threads_and_without_the_compiler(artifact):
    code = ("import sys; from runtime_py.cli import main; main(sys.argv[1:]); "
            "sys.exit(any(name in sys.modules for name in ('tvm', 'torch')))")
    done = subprocess.run([sys.executable, "-c", code, "verify", str(artifact("demo")), "--threads", "2"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.startswith("kernel") and lines and all("of allowed" in line for line in lines)
    assert f"{len(lines)} kernels verified on cpu" in done.stderr


def test_every_kernel_has_a_case():
    made = {name for family in (cpu, gpu) for name in family.__all__}
    assert set(CASES) == made - {"FORMATS", "ORIGIN"}


class Broken:
    """A library one of whose kernels is followed by ``damage(arrays)``: numpy views of its arguments."""

    def __init__(self, library, name, damage):
        self._library, self._name, self._damage = library, name, damage

    def kernel(self, name):
        kernel = self._library.kernel(name)
        if name != self._name:
            return kernel

        def broken(*arguments):
            kernel(*arguments)
            self._damage([argument if isinstance(argument, int) else writable(argument) for argument in arguments])
        return broken


def writable(tensor):
    """A tensor of the processor as an array that can be written, and one element beyond."""
    array = np.from_dlpack(tensor)
    return np.ctypeslib.as_array((ctypes.c_uint8 * (array.nbytes + array.itemsize)).from_address(array.ctypes.data)
                                 ).view(array.dtype)


def skip_last_row(arrays):
    rows = arrays[-1][:-1].reshape(len(arrays[0][:-1]) // 256, -1)  # x [n, 256]
    rows[-1].view(np.uint8)[...] = 0xFF


def change(place, index, value):
    def damage(arrays):
        arrays[place][index] = value
    return damage


def add(place, index, value):
    def damage(arrays):
        arrays[place][index] += value
    return damage


DAMAGES = {
    "small error": ("lm_head", add(-1, 7, 1e-3), "gives .* instead of .* at .0, 7. .an error of up to"),
    "skipped row": ("lm_head", skip_last_row, "leaves 2048 of 2048 elements unwritten, the first at .0, 0., for 1 tok"),
    "behind the output": ("lm_head", change(-1, -1, 0.0), "writes outside of its argument 2"),
    "NaN": ("sparse_down", change(-1, 5, np.nan), "gives nan instead of .* at .0, 5."),
    "changed input": ("router", change(0, 3, 0.5), "changes its input 0"),
    "inactive place": ("sparse_up", change(-1, -2, 0.0), "writes elements that it must leave alone, the first at"),
    "wrong integer": ("union", add(4, 0, 1), "gives 0 instead of -1 at .0, 0."),
    "wrong token": ("top_k", add(2, 3, 1), "gives .* instead of .* at .0, 3."),
    "another row of the cache": ("append_latent", change(0, -2, 0.0), "writes elements that it must leave alone"),
    "unmoved row": ("move_rows", change(0, 1, 99.0), "gives 99.0 instead of"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_found(engine, case, monkeypatch, capsys):
    name, damage, message = DAMAGES[case]
    monkeypatch.setattr(engine, "library", Broken(engine.library, name, damage))
    results = {result.kernel: result for result in check_kernels(engine)}
    assert [result.kernel for result in results.values() if result.problem] == [name]
    assert re.search(message, results[name].problem), results[name].problem


def test_what_must_not_be_read_is_nan(engine, monkeypatch):
    """An attention that sees one slot more, and a sum over experts one of which is idle."""
    class Curious:
        def kernel(self, name):
            kernel = library.kernel(name)
            if name == "attention":
                return lambda q, cache, visible, *others: kernel(q, cache, more(visible), *others)
            if name == "sparse_down":
                return lambda act, ids, *others: kernel(act, another(ids), *others)
            return kernel

    def more(tensor):
        return copied(np.from_dlpack(tensor) + 1)

    def another(tensor):
        """An idle expert in the place of the first one of the union."""
        ids = np.array(np.from_dlpack(tensor))
        idle = set(range(len(ids))) - set(ids.tolist())
        if idle and ids[0] >= 0:
            ids[0] = min(idle)
        return copied(ids)

    def copied(array):
        copy = aligned_zeros(array.shape, array.dtype)
        copy[...] = array
        return engine.device.tensor(copy)

    library = engine.library
    monkeypatch.setattr(engine, "library", Curious())
    problems = {result.kernel: result.problem for result in check_kernels(engine) if result.problem}
    assert set(problems) == {"attention", "sparse_down"}
    assert all("gives nan instead of" in problem for problem in problems.values())


def test_a_broken_weight_is_found(engine, monkeypatch):
    weights = dict(engine.artifact.weights)
    name = next(key for key in weights if "down_proj" in key and "eagle" not in key)
    weights[name] = np.full_like(weights[name], np.nan)
    monkeypatch.setitem(vars(engine.artifact), "weights", weights)
    problems = {result.kernel: result.problem for result in check_kernels(engine) if result.problem}
    assert list(problems) == ["sparse_down"] and "gives nan" in problems["sparse_down"]


def test_a_kernel_that_fails_or_has_no_twin_is_a_mismatch(artifact, monkeypatch, capsys):
    monkeypatch.delitem(CASES, "router")
    monkeypatch.setitem(CASES, "union", lambda k, n: iter([[1, 2]]))
    assert main(["verify", str(artifact("demo"))]) == 1
    out, err = capsys.readouterr()
    assert "router" in out and "FAILED: is not verified: there is no twin for 'router'" in out
    assert "FAILED: fails: " in out
    assert err.splitlines()[-1].startswith("error: ") and "3 of 30 kernels failed on cpu: router is not" in err


def test_an_older_artifact_is_refused(engine, monkeypatch, tmp_path):
    values = json.loads((engine.artifact.path / "kernels.json").read_text())
    del values["factories"]
    (tmp_path / "kernels.json").write_text(json.dumps(values))
    monkeypatch.setattr(checks.Description, "load", lambda _, load=checks.Description.load: load(tmp_path))
    with pytest.raises(UserError, match="'factories'.*rebuild"):
        next(check_kernels(engine))


def test_a_kernel_of_another_version_is_told(engine, monkeypatch):
    """Not as a failing import three layers down: the kernel's factory had other arguments then."""
    load = checks.Description.load

    def older(folder):
        found = load(folder)
        del found.factories["norm"].arguments["offset"]
        return found

    monkeypatch.setattr(checks.Description, "load", older)
    found = {result.kernel: result for result in check_kernels(engine)}
    assert "expected argument 'offset' among those of a kernel" in found["norm"].problem
    assert "rebuild it with build.py" in found["norm"].problem and found["router"].problem is None


def test_one_wrong_element_among_many():
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((3, 100_000))
    written, found = Written(expected.shape, "float32", expected, Bound.exact(2048)), expected.astype(np.float32)
    error = written.compare(found)
    assert 0 < error.closeness < 1 and 0 < error.share < 1
    found[1, 77_777] += 1e-3
    with pytest.raises(Mismatch, match="at .1, 77777."):
        written.compare(found)
    with pytest.raises(Mismatch, match="NMSE"):
        written.compare((expected * (1 + 1e-5)).astype(np.float32))


@pytest.mark.parametrize("mode", ["int8", "int8x2"])
def test_codes_are_held_to_half_a_code(mode):
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((4, 45))
    shape, dtype = activations.activation_shape(mode, expected.shape)
    written = Written(shape, dtype, expected, Bound.exact(), activations=mode)
    records = activations.encode(expected.astype(np.float32), mode)
    assert 0.5 < written.compare(records).share <= 1
    wrong = records.copy()
    wrong[2, 0, activations.PLANES[mode] * activations.CODE_WORDS + 1] += 7
    with pytest.raises(Mismatch, match="sums"):
        written.compare(wrong)
    neighbour = expected.copy()
    neighbour[1, 3] += 1.6 * np.abs(expected[1, :32]).max() / activations.LARGEST_CODE[mode]
    with pytest.raises(Mismatch, match="at .1, 3."):
        written.compare(activations.encode(neighbour.astype(np.float32), mode))
