"""Targets that tests compile for, and devices that they run on."""

from dataclasses import replace

import pytest

from blockffn_mlc.target import Target
from runtime_py.devices import Device, find_device, list_devices
from targets.cpu import cpu_target


def few_token_tiles(target: Target) -> Target:
    """The target with token tiles of the two smallest sizes and of the largest where bytes are multiplied: compiling
    every size takes long, and changes no result (tests/schedules/test_token_tiles.py)."""
    few = tuple(tuple(sorted({*sizes[:2], *sizes[-1:]})) for sizes in target.tiles.coded_token_tiles)
    return replace(target, tiles=replace(target.tiles, coded_token_tiles=few))


def can_run(activations: str) -> bool:
    """Whether this machine multiplies such activations by 4-bit weights."""
    return activations == "f32" or bool(cpu_target().tiles.dot)


def skip_unless_it_can_run(activations: str) -> None:
    if not can_run(activations):
        pytest.skip("this machine lacks an instruction for dot products of bytes")


def opencl_device(half: bool = False) -> Device:
    """The first OpenCL device that computes with float16 if ``half``; else the first that does not, where there is one,
    since nothing in float32 may need it. Skips where there is none."""
    found = [entry for entry in list_devices() if entry["device"].startswith("opencl")]
    if "unavailable" in found[0]:
        pytest.skip(found[0]["unavailable"])
    fitting = [entry for entry in found if bool(entry.get("fp16")) == half]
    if half and not fitting:
        pytest.skip("no OpenCL device here computes with float16; tools/intel_opencl.py fetches a driver that does")
    return find_device((fitting or found)[0]["device"])


def vulkan_device() -> Device:
    """The first Vulkan device. Skips where there is none."""
    found = next(entry for entry in list_devices() if entry["device"].startswith("vulkan"))
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    return find_device(found["device"])
