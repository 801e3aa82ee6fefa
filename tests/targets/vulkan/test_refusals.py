"""What cannot be compiled for Vulkan is refused in one sentence."""

import shutil

import pytest
import tvm
from test_statements import collatz
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from vulkan_harness import TARGET, module_of

from blockffn_mlc.errors import UserError
from schedules.builder import kernel
from schedules.gpu.grid import launch
from targets import find_target, list_targets
from targets.tools import host_library
from targets.vulkan import export_library, spirv
from targets.vulkan.shader import Shader


def storing(make_value, dtype="float32", emit=lambda: None, given=None):
    with kernel(__name__, "int32") as k:
        x, y = k.tensor((64,), given or dtype), k.tensor((64,), dtype)
        with launch((1,), (64,)) as (_, (item,)):
            emit()
            T.buffer_store(y, make_value(x[item]), [item])
    return k.func


def taking(dtype):
    """Stores a scalar argument: TVM's launches pass few types."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            y = T.match_buffer(T.arg("y", T.handle()), (64,), "float32")
            scalar = T.arg("scalar", getattr(T, dtype)())
            with launch((1,), (64,)) as (_, (item,)):
                T.buffer_store(y, T.cast(scalar, "float32"), [item])
    return builder.get()


def fifth_power(x):
    return tirx.call_pure_extern("float32", "fifth_power", x)


@pytest.mark.parametrize(("func", "words"), [
    (lambda: storing(fifth_power), ["function fifth_power of float32"]),
    (lambda: storing(lambda x: tirx.exp(x), "float64"), ["function exp of float64"]),
    (lambda: storing(lambda x: x, emit=lambda: T.evaluate(T.tvm_storage_sync("global"))),
     ["barrier of scope 'global'"]),
    (lambda: storing(lambda x: x, emit=lambda: T.buffer_store(
        T.alloc_buffer((4,), "float32", scope="shared.dyn"), T.float32(0), [0])), ["scope 'shared.dyn'"]),
    (lambda: storing(lambda x: tirx.call_intrin("float32", "tirx.tvm_warp_shuffle", 1, x, 0, 32, 32)),
     ["tvm_warp_shuffle"]),
    (lambda: storing(lambda x: tirx.popcount(x), "int8"), ["function popcount of int8"]),
    (lambda: storing(lambda x: tirx.reinterpret("float64", x), "float64", given="int64"), ["reinterpret", "64"]),
    *((lambda dtype=dtype: taking(dtype), [f"a scalar argument of type {dtype}"])
      for dtype in ("bool", "int8", "int16", "uint8", "uint16")),
])
def test_unsupported_constructs_are_named(func, words):
    with pytest.raises(UserError) as error:
        tvm.compile(module_of({"poor": func()}), TARGET)
    text = str(error.value).strip().splitlines()[-1]
    assert all(word in text for word in ("kernel poor_kernel", "Vulkan", *words)), text


def test_a_missing_glslc_says_what_to_install(monkeypatch, tmp_path):
    executable = tvm.compile(module_of({"collatz": collatz()}), TARGET)
    find = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "glslc" else find(name))
    for check in (lambda: export_library(executable, str(tmp_path / "k.so"), host_library().link),
                  find_target("vulkan").check_tools, find_target("vulkan:android").check_tools):
        with pytest.raises(UserError, match="no glslc found to compile shaders; install .*apt-get install glslc"):
            check()
    listed = list_targets()["vulkan"]
    assert not listed["ready"] and any(tool["name"] == "glslc" and tool["found"] is None for tool in listed["tools"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("source", "words"), [
    ("#version 450\nvoid main() { float x = 1; x.y.z(); }\n", "glslc refuses"),
    ("#version 450\n#extension GL_KHR_shader_subgroup_basic : require\nlayout(binding = 0) buffer B { uint b[]; };\n"
     "void main() { b[0] = gl_SubgroupSize; }\n", "asks for SPIR-V's capabilities [61]")])
def test_a_shader_that_should_not_be_is_a_mistake_of_ours(source, words, monkeypatch):
    monkeypatch.setattr(spirv._CACHE, "load", lambda key: None)
    with pytest.raises(UserError) as error:
        spirv.compile_shaders([Shader("bad", [], [], False, source)])
    for part in ("kernel bad", words, "a mistake of the code generator", "choose another target"):
        assert part in str(error.value)


@pytest.mark.parametrize(("content", "complaint"), [
    (b"#!/bin/sh\necho no libshaderc >&2\nexit 127\n", "--version ends with 127 and says 'no libshaderc'"),
    (b"\x7fELF of another processor", r"does not run \(Exec format error\)")])
def test_a_glslc_that_does_not_run_is_a_sentence(content, complaint, monkeypatch, tmp_path):
    broken = tmp_path / "glslc"
    broken.write_bytes(content)
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    spirv._version.cache_clear()
    with pytest.raises(UserError, match=f"{broken} {complaint}; install another .*apt-get install glslc"):
        spirv.compile_shaders([Shader("any", [], [], False, "")])


def test_shaders_are_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path))
    (shader,) = Shader.parse(tvm.compile(module_of({"collatz": collatz()}), TARGET).mod.imports[0].inspect_source())
    other = Shader("another_name", shader.arguments, shader.tags, shader.uniform, shader.source)
    made = []
    compile_one = spirv._compile
    monkeypatch.setattr(spirv, "_compile", lambda shader: made.append(shader) or compile_one(shader))
    first, second = spirv.compile_shaders([shader, other])
    assert spirv.compile_shaders([other]) == [second] and len(made) == 1 and first != second
    (kept,) = (tmp_path / "spirv").iterdir()
    kept.write_bytes(kept.read_bytes()[:-8])
    assert spirv.compile_shaders([other]) == [second] and len(made) == 2
