"""Compiled programs of OpenCL and pipelines of Vulkan on disk."""

import os

import numpy as np
import pytest
from counters import counter
from device_kernels import ADD, load_add
from opencl_kernels import address

from runtime_py.devices import program_cache
from runtime_py.devices.program_cache import ProgramCache


@pytest.fixture(scope="module")
def device(each_device):
    return each_device


@pytest.fixture(autouse=True)
def folder(device, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path))
    return tmp_path / device.kind


@pytest.fixture
def compilations(device):
    """compilations(source): what running a new module of ``source``, a form of ADD, makes the driver compile."""
    def compilations(source=None):
        before, tensor = counter(device.kind, "compilations"), device.zeros((3,), "float32")
        load_add(device, source)(address(tensor), 2.0, 3, 1, 64)
        np.testing.assert_array_equal(device.host(tensor), [2, 2, 2])
        return counter(device.kind, "compilations") - before
    return compilations


def test_a_program_is_compiled_once(compilations, folder):
    assert [compilations() for _ in range(3)] == [1, 0, 0]
    assert [path.suffix for path in folder.iterdir()] == [".bin"]  # nothing half-written is left


def test_another_source_is_another_program(device, compilations, folder):
    other = ADD[device.kind].replace("x[i] += value", "x[i] = 2 * value - x[i] - value")
    assert [compilations(source) for source in (None, other, None, other)] == [1, 1, 0, 0]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:len(data) // 2], lambda data: data[:20],
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_damaged_entries_are_made_again(compilations, folder, damage):
    compilations()
    (entry,) = folder.iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    assert [compilations(), compilations()] == [1, 0]
    assert len(entry.read_bytes()) == len(good)


def test_a_binary_that_the_driver_refuses_is_made_again(device, compilations, folder, monkeypatch):
    keys = []
    monkeypatch.setattr(ProgramCache, "path", lambda self, key: keys.append(key) or folder / "entry.bin")
    compilations()
    ProgramCache(device.kind).store(keys[0], b"no program")
    assert [compilations(), compilations()] == [1, 0]
    if device.kind == "opencl":  # platform, device, version, driver, source
        assert ADD["opencl"].encode() in keys[0] and len(keys[0].split(b"\n")) > 5


def test_what_was_not_used_for_longest_is_removed(device, folder, monkeypatch):
    """Entries of 100 bytes, of which two fit."""
    monkeypatch.setattr(program_cache, "KEPT_BYTES", 299)
    cache = ProgramCache(device.kind)
    entries = [(name, name * 68) for name in (b"a", b"b", b"c")]
    for age, (key, binary) in zip((30, 20), entries):
        cache.store(key, binary)
        os.utime(cache.path(key), ns=(0, cache.path(key).stat().st_mtime_ns - age * 10**9))
    assert cache.load(b"a") == b"a" * 68
    cache.store(*entries[2])
    assert [cache.load(key) for key, _ in entries] == [b"a" * 68, None, b"c" * 68]
    assert {path.name for path in folder.iterdir()} == {cache.path(key).name for key in (b"a", b"c")}


def test_what_others_may_have_written_is_not_used(compilations, folder):
    compilations()
    folder.chmod(0o777)
    assert [compilations(), compilations()] == [1, 1]
    folder.chmod(0o755)
    assert compilations() == 0


def test_a_folder_that_cannot_be_written_costs_a_compilation(compilations, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path / "file"))
    assert [compilations(), compilations()] == [1, 1]


def test_a_user_without_a_home_can_run_kernels(compilations, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(program_cache, "cache_folder", homeless)
    assert [compilations(), compilations()] == [1, 1]
