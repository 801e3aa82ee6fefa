"""Opening artifacts: good ones are mapped in place, bad ones are refused in one sentence."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from toy import CHUNK, HOST, WINDOW, write_artifact

from blockffn_mlc.errors import UserError
from runtime_py import weights as weights_module
from runtime_py.artifact import Artifact
from runtime_py.devices import find_device
from runtime_py.host import check_host, missing_flags
from runtime_py.library import Library
from runtime_py.tvm_runtime import installed_version
from runtime_py.weights import check_weights, load_weights

SHARD = "params_shard_0.bin"


def edit(folder, file, change):
    path = folder / file
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_config(folder, keys, value):
    def change(values):
        *path, last = keys.split(".")
        for key in path:
            values = values[key]
        if value is None:
            del values[last]
        else:
            values[last] = value
    edit(folder, "mlc-chat-config.json", change)


def edit_record(folder, **fields):
    edit(folder, "tensor-cache.json", lambda index: index["records"][0]["records"][1].update(fields))


def edit_shard(folder, **fields):
    edit(folder, "tensor-cache.json", lambda index: index["records"][0].update(fields))


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_artifact_opens(tmp_path):
    tensors = write_artifact(tmp_path / "toy")
    artifact = Artifact.open(tmp_path / "toy")
    assert (artifact.context_window_size, artifact.prefill_chunk_size) == (WINDOW, CHUNK)
    assert artifact.config.num_experts == 12 and artifact.library.name == "toy.so" and artifact.name == "toy"
    assert list(artifact.weights) == list(tensors)
    for name, tensor in tensors.items():
        found = artifact.weights[name]
        np.testing.assert_array_equal(found, tensor)
        assert found.dtype == tensor.dtype and found.ctypes.data % 64 == 0


def test_the_token_stream_is_optional_and_checked(artifact_folder):
    file = artifact_folder / "token_stream.json"
    assert Artifact.open(artifact_folder).token_stream is None
    file.write_text("[3, 0, 299]")
    stream = Artifact.open(artifact_folder).token_stream
    assert stream.dtype == np.int32 and stream.tolist() == [3, 0, 299]
    for content, message in (("[3, 300]", "0 to 299, found 300"), ("[-1]", "found -1"), ("[]", "found none"),
                             ("[1, 2", "not readable"), ('{"ids": [1]}', "flat list")):
        file.write_text(content)
        with pytest.raises(UserError, match=f"token_stream.json: .*{message}"):
            _ = Artifact.open(artifact_folder).token_stream


def memory_of(array):
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_weights_are_mapped_privately(artifact_folder):
    before = (artifact_folder / SHARD).read_bytes()
    weights = Artifact.open(artifact_folder, mmap=True).weights
    base = memory_of(weights["a.weight"])
    assert isinstance(base, np.memmap) and base.mode == "c"
    weights["a.weight"][...] = 0
    assert (artifact_folder / SHARD).read_bytes() == before


@pytest.mark.parametrize("piece", [5, 64, weights_module.READ_BYTES])
def test_all_shards_are_read_into_one_piece_of_memory(tmp_path, monkeypatch, piece):
    """Whatever the pieces they are read in; sizes that are no multiple of the alignment, an empty shard too."""
    rng = np.random.default_rng(0)
    contents = {f"t{i}": rng.integers(0, 256, size, np.uint8) for i, size in enumerate((7, 1000, 0, 64))}
    shards = [dict(dataPath=f"{name}.bin", nbytes=data.size, records=[dict(
        name=name, shape=[data.size], dtype="uint8", format="raw", nbytes=data.size, byteOffset=0)])
        for name, data in contents.items()]
    for name, data in contents.items():
        (tmp_path / f"{name}.bin").write_bytes(data.tobytes())
    (tmp_path / weights_module.INDEX).write_text(json.dumps({"records": shards}))
    monkeypatch.setattr(weights_module, "READ_BYTES", piece)
    for mmap in (False, True):
        found = load_weights(tmp_path, mmap)
        assert list(found) == list(contents)
        for name, data in contents.items():
            np.testing.assert_array_equal(found[name], data)
            assert found[name].ctypes.data % weights_module.ALIGNMENT == 0 or not data.size
        assert len({id(memory_of(array)) for array in found.values()}) == (len(contents) if mmap else 1)


def test_a_shard_that_shrinks_while_it_is_read_is_refused(artifact_folder, monkeypatch):
    def truncate(sizes, index):
        with (artifact_folder / SHARD).open("r+b") as file:
            file.truncate(sizes[0] - 1)
        return [np.empty(size, np.uint8) for size in sizes]
    monkeypatch.setattr(weights_module, "_allocate", truncate)
    assert f"{SHARD}: ended while it was read" in refusal(load_weights, artifact_folder)


def test_weights_larger_than_the_memory_are_refused(artifact_folder, monkeypatch):
    def exhausted(*_):
        raise MemoryError
    monkeypatch.setattr(np, "empty", exhausted)
    assert "no memory for" in refusal(load_weights, artifact_folder)


@pytest.mark.parametrize(("keys", "value", "message"), [
    ("blockffn", None, "'blockffn' is missing"),
    ("blockffn.format_version", 2, "'format_version': expected 1, found 2; rebuild"),
    ("blockffn.format_version", True, "expected an integer, found True"),
    ("blockffn.library", "../toy.so", "'../toy.so' is not a relative path inside"),
    ("blockffn.library", "/lib/toy.so", "not a relative path inside"),
    ("blockffn.library", "lib\\toy.so", "not a relative path inside"),
    ("blockffn.library", "lib", "no such file; mlc-chat-config.json names it"),
    ("blockffn.library", 3, "'library': expected a string, found 3"),
    ("blockffn.cache", [], "'cache': expected an object"),
    ("blockffn.cache.shape", [4, 4], r"expected \[slots, kv_heads, width\], found \[4, 4\]"),
    ("blockffn.cache.shape", [WINDOW - 1, 1, 4], f"{WINDOW - 1} slots cannot hold"),
    ("blockffn.cache.shape", [WINDOW, -1, 4], "list of non-negative integers"),
    ("blockffn.cache.dtype", "int8", "expected float32 or float16, found 'int8'"),
    ("blockffn.max_tree_nodes", 65, "expected at most 64, found 65"),
    ("model_config", None, "'model_config' is missing"),
    ("model_config.prefill_chunk_size", 0, "'prefill_chunk_size': expected a positive integer, found 0"),
    ("model_config.hidden_size", "x", "'hidden_size': expected int, found 'x'"),
    ("model_config.num_experts", None, "'num_experts' is missing"),
])
def test_bad_configurations_are_refused(artifact_folder, keys, value, message):
    edit_config(artifact_folder, keys, value)
    with pytest.raises(UserError, match=message):
        Artifact.open(artifact_folder)


@pytest.mark.parametrize("file", ["mlc-chat-config.json", "tensor-cache.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\xff", "[" * 100000, None])
def test_damaged_json_is_refused(artifact_folder, file, content):
    path = artifact_folder / file
    path.unlink() if content is None else path.write_bytes(content.encode("latin-1"))
    message = refusal(lambda: Artifact.open(artifact_folder).weights)
    assert file in message


def test_a_missing_folder_is_refused(tmp_path):
    assert "no such folder" in refusal(Artifact.open, tmp_path / "nothing")


@pytest.mark.parametrize("delta", [-1, 1])
def test_shards_of_the_wrong_size_are_refused(artifact_folder, delta):
    path = artifact_folder / SHARD
    data = path.read_bytes()
    path.write_bytes((data + b"\0")[:len(data) + delta])
    message = refusal(load_weights, artifact_folder)
    assert str(path) in message and f"expected {len(data)} bytes, found {len(data) + delta}" in message
    assert ("truncated" if delta < 0 else "too long") in message


def test_empty_and_missing_shards_are_refused(artifact_folder):
    (artifact_folder / SHARD).write_bytes(b"")
    assert "found 0" in refusal(load_weights, artifact_folder)
    (artifact_folder / SHARD).unlink()
    assert "cannot be opened" in refusal(load_weights, artifact_folder)


@pytest.mark.parametrize("name", ["../x.bin", "/etc/passwd", "a/../../x", "", "C:\\x", "."])
def test_shard_names_stay_inside_the_folder(artifact_folder, name):
    edit_shard(artifact_folder, dataPath=name)
    assert "not a relative path inside" in refusal(load_weights, artifact_folder)


@pytest.mark.parametrize(("fields", "message"), [
    ({"byteOffset": 8}, "offset 8 is not a multiple of 64"),
    ({"byteOffset": 6400}, "outside its shard"),
    ({"byteOffset": -64}, "outside its shard"),
    ({"shape": [8]}, r"float16 \[8\] takes 16 bytes, field 'nbytes' says 14"),
    ({"shape": [-7]}, "list of non-negative integers"),
    ({"shape": "7"}, "expected a list"),
    ({"dtype": "float64"}, "'dtype': expected one of float32"),
    ({"dtype": "object"}, "'dtype': expected one of float32"),
    ({"format": "f32-to-bf16"}, "expected 'raw', found 'f32-to-bf16'"),
    ({"name": "a.weight"}, "'a.weight' is recorded twice"),
    ({"name": 7}, "'name': expected a string"),
    ({"nbytes": 1.5}, "'nbytes': expected an integer"),
])
def test_bad_tensor_records_are_refused(artifact_folder, fields, message):
    edit_record(artifact_folder, **fields)
    with pytest.raises(UserError, match=message):
        load_weights(artifact_folder)


def test_records_that_are_no_objects_are_refused(artifact_folder):
    edit_shard(artifact_folder, records=[3])
    assert "list of tensor objects" in refusal(load_weights, artifact_folder)
    edit(artifact_folder, "tensor-cache.json", lambda index: index.update(records=["x"]))
    assert "list of shard objects" in refusal(load_weights, artifact_folder)


def test_weights_must_be_those_of_the_library(artifact_folder):
    weights = load_weights(artifact_folder)
    params = [{"name": n, "dtype": w.dtype.name, "shape": list(w.shape)} for n, w in reversed(weights.items())]
    ordered = check_weights(weights, params, artifact_folder)
    assert [id(w) for w in ordered] == [id(weights[p["name"]]) for p in params]
    assert "1 missing tensor(s): d.weight" in refusal(
        check_weights, weights, [*params, {"name": "d.weight"}], artifact_folder)
    assert "1 surplus tensor(s): a.weight" in refusal(check_weights, weights, params[:-1], artifact_folder)
    params[0]["shape"] = [3, 2]
    message = refusal(check_weights, weights, params, artifact_folder)
    assert "'c.q_weight': the model library expects uint32 [3, 2], found uint32 [2, 3]" in message
    params[0] |= {"shape": [2, 3], "dtype": "int32"}
    assert "expects int32 [2, 3], found uint32 [2, 3]" in refusal(check_weights, weights, params, artifact_folder)


@pytest.mark.parametrize(("keys", "value", "words"), [
    ("blockffn.tvm_version", "0.26.0", ["TVM 0.26.0", installed_version(), "python build.py"]),
    ("blockffn.target", "cuda", ["'cuda'", "'cpu'", "python build.py"]),
    ("blockffn.host", "vax generic, sse", ["vax generic", "python build.py"]),
])
def test_libraries_for_something_else_are_refused(artifact_folder, keys, value, words):
    edit_config(artifact_folder, keys, value)
    message = refusal(Library, Artifact.open(artifact_folder), find_device("cpu"))
    assert all(word in message for word in words)


def test_a_damaged_library_is_refused(artifact_folder):
    message = refusal(Library, Artifact.open(artifact_folder), find_device("cpu"))
    assert "toy.so: not a usable model library" in message and "rebuild" in message


def test_a_processor_without_the_vector_unit_is_refused(monkeypatch):
    monkeypatch.setattr("runtime_py.host._cpu_flags", lambda: {"fpu", "avx2"})
    machine = HOST.split()[0]
    assert "lacks avx512bw, avx512dq, avx512f" in refusal(check_host, f"{machine} znver4, avx512", "x")
    assert "lacks bmi2, f16c, fma" in refusal(check_host, f"{machine} haswell, avx2", "x")
    assert "lacks avx_vnni, bmi2, f16c, fma" in refusal(check_host, f"{machine} alderlake, avxvnni", "x")
    assert "lacks asimddp" in refusal(check_host, f"{machine} neoverse-n1, dotprod", "x")
    assert "avx512_vnni" in refusal(check_host, f"{machine} znver4, avx512vnni", "x")
    check_host(f"{machine} generic, sse", "x")
    monkeypatch.setattr("runtime_py.host._cpu_flags", set)
    check_host(f"{machine} znver4, avx512", "x")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's way to tell")
@pytest.mark.parametrize("hwcap, missing", [(0x8FB, {"asimddp"}), (0x119FFB, set())])  # Cortex-A53, Neoverse-N1
def test_on_arm_the_process_is_told_what_there_is(monkeypatch, hwcap, missing):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(getauxval={16: hwcap}.__getitem__))
    assert missing_flags("dotprod") == missing and missing_flags("neon") == set()
