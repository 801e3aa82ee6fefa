"""A whole model with the tiles of phones, on this machine's OpenCL device, whose own tiles have no staged kernels."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from compiled import GOLDEN, nmse
from greedy import Pair
from machine import opencl_device

from runtime_py.bench.calls import Description
from runtime_py.cli import main
from runtime_py.devices.program_cache import ProgramCache
from runtime_py.selftest import checks
from schedules.tiles import GPU_TILES, MAX_TREE_NODES

MODEL = GOLDEN / "mla_block"
TOKENS = 100  # of one pass: a tile of 64 rows and part of another
STAGED = ("linear", "latent_query", "sparse_up", "sparse_down")  # factories of kernels that have such a form


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    device = opencl_device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GPU_TILES, "opencl", GPU_TILES["adreno"])
        return Pair.build(device, tmp_path_factory.mktemp("phone"), "--model", MODEL, "--quantization", "q0f32")


@pytest.fixture
def launched(monkeypatch):
    """launched(): names of the kernels that some library launched for the first time, since the last call: it asks the
    cache for their programs then."""
    names, path = set(), ProgramCache.path

    def record(self, key):
        names.update(re.findall(r"\b(\w+)\([^;{}]*\) \{", key.decode().rpartition("__kernel")[2])[:1])
        return path(self, key)

    def launched():
        found = set(names)
        names.clear()
        return found
    monkeypatch.setattr(ProgramCache, "path", record)
    return launched


@pytest.fixture
def staged(pair):
    """Kernels that have a staged form, which is their last."""
    factories = Description.load(pair.device.artifact.path).factories
    return sorted(name for name, factory in factories.items() if factory.name in STAGED)


def test_long_passes_equal_the_original_implementation_and_the_processor(pair, staged, launched):
    cpu, phone = pair
    with np.load(MODEL / "expected.npz") as arrays:
        golden, logits = arrays["ids"][0], arrays["logits"]
    ids = np.resize(golden, TOKENS).tolist()
    phone.score(ids[:MAX_TREE_NODES], MAX_TREE_NODES)
    assert launched()
    found, expected = phone.score(ids, TOKENS), cpu.score(ids, TOKENS)
    assert sorted(map(kernel, launched())) == staged  # passes of more tokens than a tree has differ in nothing else
    assert nmse(found.logits[:len(golden)], logits) <= 1e-9
    assert nmse(found.logits, expected.logits) <= 1e-9
    assert nmse(found.router_scores, expected.router_scores) <= 1e-9


def test_verify_launches_staged_kernels(pair, staged, launched, tmp_path, monkeypatch, capsys):
    phone = shutil.copytree(pair.device.artifact.path, tmp_path / "phone")  # a library that launched nothing yet
    monkeypatch.setattr(checks, "TOKENS", (14, MAX_TREE_NODES + 1))  # accepted paths have rows of a tree alone
    assert main(["verify", str(phone), "--device", pair.device.device.name, "--json"]) == 0
    assert {entry["problem"] for entry in json.loads(capsys.readouterr().out)["kernels"]} == {None}
    forms = Counter(map(kernel, launched()))
    assert all(forms[name] == 2 for name in staged), forms  # for 14 tokens, and for more than a tree has


def kernel(name):
    """Which kernel a device function is a form of."""
    return re.sub(r"_kernel(_\d+)?$", "", name)
