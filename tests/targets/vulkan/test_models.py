"""The shaders of whole models: valid SPIR-V that asks a device for no more than the format needs."""

import shutil
import subprocess
from dataclasses import replace

import pytest
from checkpoints import GQA, MLA

from blockffn_mlc.builder import make_plan
from blockffn_mlc.compile import compile_graph
from targets import find_target
from targets.vulkan.shader import Shader
from targets.vulkan.spirv import CAPABILITIES, ENVIRONMENT, capabilities, compile_shaders

HALF = {"Float16", "StorageBuffer16BitAccess"}


@pytest.mark.parametrize(("config", "quantization", "needs"), [
    (MLA, "q0f32", set()), (GQA, "q0f16", HALF), (MLA, "q4f16_1", HALF), (GQA, "q4f32_1", set())])
def test_shaders(config, quantization, needs, tmp_path):
    if shutil.which("spirv-val") is None:
        pytest.skip("no spirv-val (apt-get install spirv-tools)")
    target = find_target("vulkan")
    target = replace(target, tiles=replace(target.tiles, token_tiles=(1, 4)))
    plan = make_plan(config, target, quantization, 192, 130)
    executable = compile_graph(plan.graph, plan.target.tvm_target)
    shaders = Shader.parse(executable.mod.imports[0].imports[0].inspect_source())
    assert len(shaders) > 20 and not any(shader.uniform for shader in shaders)
    asked = set()
    for shader, code in zip(shaders, compile_shaders(shaders)):
        checked = subprocess.run(["spirv-val", "--target-env", ENVIRONMENT, "-"], input=code, capture_output=True)
        assert checked.returncode == 0, (shader.name, checked.stderr)
        asked |= {CAPABILITIES[number] for number in capabilities(code)}
    assert asked == {"Shader"} | needs
