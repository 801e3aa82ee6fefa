"""Compiles functions for a Vulkan device and for this processor, and runs both."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tvm
from machine import vulkan_device
from tvm.script.ir_builder import tirx as T

from schedules.builder import kernel
from schedules.gpu.grid import launch
from targets import find_target
from targets.tools import host_library
from targets.vulkan import export_library
from targets.vulkan.shader import Shader
from targets.vulkan.spirv import ENVIRONMENT, compile_shaders

TARGET = find_target("vulkan").tvm_target
ITEMS = 64
SIZE = ITEMS * 16  # elements of an array: a vector of 16 for each work-item


device = cache(vulkan_device)  # the same for all tests


@dataclass(frozen=True)
class Case:
    """out[i] = compute(a, b, i) for i < ITEMS * lanes, in vectors of ``lanes``; ``a(i)`` and ``b(i)`` are elements of
    two arrays of type ``dtype``. ``result``: the type of what is computed."""

    name: str
    dtype: str
    compute: Callable[[Any, Any, Any], Any]
    result: str
    lanes: int = 1


def elementwise(cases: Sequence[Case], *, on_device: bool) -> tvm.tirx.PrimFunc:
    """One kernel that computes cases of one ``dtype``: parameters a, b [SIZE], then [cases, SIZE] for each type of
    result, in alphabetical order. Without ``on_device``: plain loops."""
    with kernel(__name__, "int32") as k:
        a, b = (k.tensor((SIZE,), cases[0].dtype) for _ in range(2))
        results = {dtype: k.tensor((len(cases), SIZE), dtype) for dtype in sorted({case.result for case in cases})}

        def compute(item: Any) -> None:
            for row, case in enumerate(cases):
                loop = T.vectorized if on_device and case.lanes > 1 else T.serial
                with loop(0, case.lanes) as lane:
                    i = item * case.lanes + lane
                    value = case.compute(a.__getitem__, b.__getitem__, i)
                    T.buffer_store(results[case.result], value, [row, i])

        if on_device:
            with launch((1,), (ITEMS,)) as (_, (item,)):
                compute(item)
        else:
            with T.serial(0, ITEMS) as item:
                compute(item)
    return k.func


def library(functions: dict[str, tvm.tirx.PrimFunc], folder) -> Any:
    """Functions compiled for Vulkan, under these names; their SPIR-V is valid, where there is spirv-val to say so."""
    device()
    path = str(folder / "kernels.so")
    executable = tvm.compile(module_of(functions), TARGET)
    export_library(executable, path, host_library().link)
    if shutil.which("spirv-val"):
        shaders = Shader.parse(executable.mod.imports[0].inspect_source())
        for shader, code in zip(shaders, compile_shaders(shaders)):
            check_spirv(shader, code)
    return tvm.runtime.load_module(path)


def check_spirv(shader: Shader, code: bytes) -> None:
    """A kernel is what Vulkan's specification asks of SPIR-V."""
    done = subprocess.run(["spirv-val", "--target-env", ENVIRONMENT, "-"], input=code, capture_output=True)
    assert done.returncode == 0, (shader.name, done.stderr)


def shaders_of(functions: dict[str, tvm.tirx.PrimFunc]) -> list[Shader]:
    """The shaders that become of functions."""
    return Shader.parse(tvm.compile(module_of(functions), TARGET).mod.imports[0].inspect_source())


def processor(functions: dict[str, tvm.tirx.PrimFunc]) -> Any:
    """Functions compiled for this processor: the reference."""
    return tvm.compile(module_of(functions), tvm.target.Target("llvm")).jit()


def module_of(functions: dict[str, tvm.tirx.PrimFunc]) -> tvm.IRModule:
    return tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in functions.items()})


def on_device(function: Any, arrays: Sequence[np.ndarray], *scalars: Any) -> list[np.ndarray]:
    """What the tensors hold after ``function`` was called with copies of ``arrays``, then ``scalars``."""
    tensors = [device().tensor(array) for array in arrays]
    function(*tensors, *scalars)
    return [device().host(tensor) for tensor in tensors]


def on_processor(function: Any, arrays: Sequence[np.ndarray], *scalars: Any) -> list[np.ndarray]:
    """The same by a function compiled for the processor."""
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    function(*tensors, *scalars)
    return [tensor.numpy() for tensor in tensors]


def compare(groups: dict[str, list[Case]], folder, numbers: Callable[[str, str], np.ndarray]) -> dict[str, str]:
    """Compute groups of cases of one dtype each on the device and here: what differs, by the cases' names.
    ``numbers(name, dtype)``: the contents of array "a" or "b"."""
    found = library({name: elementwise(cases, on_device=True) for name, cases in groups.items()}, folder)
    expected = processor({name: elementwise(cases, on_device=False) for name, cases in groups.items()})
    wrong = {}
    for name, cases in groups.items():
        inputs = [numbers(array, cases[0].dtype) for array in "ab"]
        types = sorted({case.result for case in cases})
        arrays = [*inputs, *(np.zeros((len(cases), SIZE), dtype) for dtype in types)]
        wanted, got = (run(module[name], arrays)[2:] for run, module in ((on_processor, expected), (on_device, found)))
        for row, case in enumerate(cases):
            w, g = (results[types.index(case.result)][row] for results in (wanted, got))
            different = np.flatnonzero((w != g) & ~((w != w) & (g != g)))  # NaNs are equal here
            if different.size:
                at = different[0]
                wrong[f"{case.name} x{case.lanes}"] = f"{[array[at] for array in inputs]}: {w[at]}, not {g[at]}"
    return wrong
