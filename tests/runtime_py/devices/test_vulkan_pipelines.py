"""Compiled Vulkan pipelines on disk: what test_program_cache.py does not ask of every device."""

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
    """compilations(name): what running a new module of ADD under that name makes the driver compile."""
    def compilations(name="add"):
        before, tensor = counter("compilations"), vulkan.zeros((3,), "float32")
        load_kernel(name, ADD, (POINTER, FLOAT32, INT32))(address(tensor), 2.0, 3, 1, 64)
        np.testing.assert_array_equal(vulkan.host(tensor), [2, 2, 2])
        return counter("compilations") - before
    return compilations


def test_another_name_is_another_pipeline(compilations, folder):
    assert [compilations(), compilations(name="plus"), compilations()] == [1, 1, 0]
    assert len(list(folder.iterdir())) == 2


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
