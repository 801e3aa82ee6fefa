"""The targets for Vulkan and their limits."""

import dataclasses

import pytest
from building import build
from small_library import small_graph

from blockffn_mlc import builder
from blockffn_mlc.errors import UserError
from blockffn_mlc.libraries import write_libraries
from runtime_py.devices import list_devices
from schedules.tiles import GPU_TILES
from targets import find_target, find_targets
from targets.vulkan import target as vulkan


def devices(**facts):
    return lambda: [{"device": "cpu"}, {"device": "vulkan:0", **facts}]


def test_limits_are_what_every_device_has():
    for name in ("vulkan", "vulkan:android"):
        limits = find_target(name).limits
        assert (limits.work_group, limits.threadgroup_bytes, limits.buffer_bytes) == (128, 16384, 1 << 27)
        assert limits.groups == 65535
        assert find_target(name).tiles == GPU_TILES["generic"]


def test_phones_get_both_forms():
    target = find_target("vulkan:android")
    assert [form.suffix for form in target.forms] == [".so", ".tar"] and target.prefill_chunk == 128
    assert str(target.tvm_target.host.attrs["mtriple"]) == "aarch64-linux-android"


@pytest.mark.parametrize(("found", "bytes_"), [(1 << 30, 1 << 30), (1 << 32, (1 << 31) - 1)])
def test_probed_buffers_are_the_devices_and_the_rest_what_kernels_use(found, bytes_, monkeypatch):
    monkeypatch.setattr(vulkan, "list_devices", devices(
        max_work_group_size=1024, local_memory_bytes=49152, max_allocation_bytes=found, max_buffers=7,
        max_groups=99999))
    (target,) = find_targets("vulkan", probe=True)
    assert target.limits == dataclasses.replace(find_target("vulkan").limits, buffer_bytes=bytes_, buffers=7,
                                                groups=99999)
    assert target.tiles == GPU_TILES["generic"] and int(target.tvm_target.attrs["max_num_threads"]) == 128


def test_kernels_that_take_more_buffers_than_the_probed_device_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vulkan, "list_devices", devices(max_allocation_bytes=1 << 27, max_buffers=4, max_groups=65535))
    target = find_target("vulkan", probe=True)
    with pytest.raises(UserError, match=r"^kernel add_kernel: a list of 5 buffers, target vulkan allows 4; leave out "
                                        r"MLC's functions, .* \(--no-mlc\), or choose another --target, "):
        write_libraries(small_graph(inputs=4), target, tmp_path / "library", "", lambda stage: None)
    assert list(write_libraries(small_graph(inputs=3), target, tmp_path / "library", "", lambda stage: None))


def test_probing_needs_a_device_and_a_target_that_asks(monkeypatch):
    monkeypatch.setattr(vulkan, "list_devices", devices(unavailable="no Vulkan driver"))
    with pytest.raises(UserError, match="--device-limits probe: no Vulkan driver"):
        find_target("vulkan", probe=True)
    monkeypatch.setattr(vulkan, "list_devices", devices(name="a card"))  # all that TVM's own runtime tells
    with pytest.raises(UserError, match="--device-limits probe: TVM's own .* a card; leave"):
        find_target("vulkan", probe=True)
    with pytest.raises(UserError, match="--device-limits probe: target cpu has fixed limits; .*--target vulkan"):
        find_targets("cpu", probe=True)


def test_this_machines_largest_buffer_is_taken():
    found = next(entry for entry in list_devices() if entry["device"].startswith("vulkan"))
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    limits = find_target("vulkan", probe=True).limits
    assert limits.buffer_bytes == min(found["max_allocation_bytes"], (1 << 31) - 1)
    assert limits.buffers >= 4 and limits.groups >= 65535  # what Vulkan asks of all
    build("--target", "vulkan", "--no-mlc", "--device-limits", "probe", "--dry-run")


def test_an_artifact_for_phones_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "write_libraries", lambda *_: {})  # compiling those takes long
    build("--target", "vulkan:android", "--no-mlc", "--quantization", "q4f16_1", "-o", tmp_path / "phone")
    text = (tmp_path / "phone" / "README.md").read_text()
    for words in ("Vulkan 1.1", "shaderFloat16", "-DUSE_VULKAN=ON", "7 /* Vulkan */",
                  "128 work-items", "16 KB of threadgroup memory", "128 MB"):
        assert words in text, words
    assert "OpenCL" not in text
