"""Compiled Vulkan pipelines on disk."""

import numpy as np
import pytest
from vulkan_kernels import ADD, FLOAT32, INT32, POINTER, address, counter, load_kernel

from runtime_py.devices.program_cache import ProgramCache

_DIGEST = 32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path))
    return tmp_path / "vulkan"


@pytest.fixture
def compilations(vulkan):
    """compilations(source): what running a new module of ``source``, a form of ADD, makes the driver compile."""
    def compilations(source=ADD, name="add"):
        before, tensor = counter("compilations"), vulkan.zeros((3,), "float32")
        load_kernel(name, source, (POINTER, FLOAT32, INT32))(address(tensor), 2.0, 3, 1, 64)
        np.testing.assert_array_equal(vulkan.host(tensor), [2, 2, 2])
        return counter("compilations") - before
    return compilations


def test_a_pipeline_is_compiled_once(compilations, folder):
    assert [compilations() for _ in range(3)] == [1, 0, 0]
    assert [path.suffix for path in folder.iterdir()] == [".bin"]  # nothing half-written is left


def test_another_shader_is_another_pipeline(compilations, folder):
    other = ADD.replace("x[i] += value", "x[i] = 2 * value - x[i] - value")
    assert [compilations(source) for source in (ADD, other, ADD, other)] == [1, 1, 0, 0]
    assert compilations(name="plus") == 1
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:len(data) // 2], lambda data: data[:20],
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_damaged_entries_are_made_again(compilations, folder, damage):
    compilations()
    (entry,) = folder.iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    assert [compilations(), compilations()] == [1, 0]
    assert len(entry.read_bytes()) == len(good)


@pytest.mark.parametrize("byte", [4, 8, 12, 16, 31])  # header version, vendor, device, and the driver's own number
def test_entries_of_another_device_or_driver_are_made_again(compilations, folder, monkeypatch, byte):
    keys = []
    monkeypatch.setattr(ProgramCache, "path", lambda self, key: keys.append(key) or folder / "entry.bin")
    compilations()
    data = bytearray((folder / "entry.bin").read_bytes()[_DIGEST:])
    data[byte] ^= 1
    ProgramCache("vulkan").store(keys[0], bytes(data))
    assert [compilations(), compilations()] == [1, 0]


def test_a_key_names_device_driver_and_shader(compilations, vulkan, folder, monkeypatch):
    keys = []
    monkeypatch.setattr(ProgramCache, "path", lambda self, key: keys.append(key) or folder / "entry.bin")
    compilations()
    assert keys[0].startswith(vulkan.product.encode() + b"\n") and b"\nadd\n" in keys[0]


def test_a_folder_that_cannot_be_written_costs_a_compilation(compilations, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path / "file"))
    assert [compilations(), compilations()] == [1, 1]
