"""The shaders of whole models: valid SPIR-V that asks a device for no more than the format needs, and that the compiler
of a GPU's driver takes."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from checkpoints import GQA, MLA
from vulkan_harness import check_spirv

from blockffn_mlc.builder import make_plan
from blockffn_mlc.compile import compile_graph
from targets import find_target
from targets.vulkan.binary import capabilities
from targets.vulkan.shader import Shader
from targets.vulkan.spirv import CAPABILITIES, compile_shaders

HALF = {"Float16", "StorageBuffer16BitAccess"}
MODELS = {"mla-q0f32": (MLA, set()), "gqa-q0f16": (GQA, HALF), "mla-q4f16_1": (MLA, HALF), "gqa-q4f32_1": (GQA, set())}
RADV = Path("/usr/share/vulkan/icd.d/radeon_icd.x86_64.json")


@cache
def shaders_of_model(model):
    """Each with its SPIR-V."""
    target = find_target("vulkan")
    target = replace(target, tiles=replace(target.tiles, token_tiles=(1, 4)))
    plan = make_plan(MODELS[model][0], target, model.split("-")[1], 192, 130)
    executable = compile_graph(plan.graph, plan.target.tvm_target)
    shaders = Shader.parse(executable.mod.imports[0].imports[0].inspect_source())
    assert len(shaders) > 20 and not any(shader.uniform for shader in shaders)
    return list(zip(shaders, compile_shaders(shaders)))


@pytest.mark.parametrize("model", MODELS)
def test_shaders_are_valid_and_frugal(model):
    if shutil.which("spirv-val") is None:
        pytest.skip("no spirv-val (apt-get install spirv-tools)")
    assert max(shader.arguments.count("handle") for shader, _ in shaders_of_model(model)) == 8  # docs/vulkan.md
    asked = set()
    for shader, code in shaders_of_model(model):
        check_spirv(shader, code)
        asked |= {CAPABILITIES[number] for number in capabilities(code)}
    assert asked == {"Shader"} | MODELS[model][1]


@pytest.fixture(scope="module")
def make_pipelines(tmp_path_factory):
    program = tmp_path_factory.mktemp("pipelines") / "pipelines"
    subprocess.run(["c++", Path(__file__).with_name("pipelines.cc"), "-o", program, "-lvulkan"], check=True)
    return program


@pytest.mark.parametrize("model", MODELS)
def test_a_gpus_compiler_takes_all_kernels(model, make_pipelines, tmp_path):
    """AMD's driver in Mesa compiles for GPUs that are not there. It spills nothing, and reads activations four floats
    at a time."""
    if not RADV.exists():
        pytest.skip("no Vulkan driver for AMD's GPUs (apt-get install mesa-vulkan-drivers)")
    arguments = []
    for shader, code in shaders_of_model(model):
        path = tmp_path / f"{shader.name}.spv"
        path.write_bytes(code)
        arguments += [path, shader.name]
    done = subprocess.run([make_pipelines, *arguments], capture_output=True, text=True, env=os.environ | {
        "VK_ICD_FILENAMES": str(RADV), "VK_DRIVER_FILES": str(RADV), "RADV_FORCE_FAMILY": "NAVI21",
        "RADV_DEBUG": "shaders,shaderstats,nocache"})
    assert done.returncode == 0, done.stderr[-500:]
    device, *compiled = done.stdout.splitlines()
    assert "NAVI21" in device and compiled == [str(name) for name in arguments[1::2]]
    said = dict(part.split("\n", 1) for part in re.split("^kernel ", done.stderr, flags=re.MULTILINE)[1:])
    for name in compiled:
        assert re.search(r"Spilled VGPRs: 0$", said[name], re.MULTILINE), name
    wide = said["sparse_up_kernel"].split("disasm:")[1].count("buffer_load_dwordx4")
    assert wide >= 2, wide
