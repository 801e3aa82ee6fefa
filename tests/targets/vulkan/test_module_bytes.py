"""The format of a library's Vulkan module, read by a parser of its own, and what SPIR-V says of itself."""

import shutil
import struct
import tarfile
from dataclasses import replace

import pytest
import tvm
from test_scalars import scalars
from test_statements import collatz
from test_vectors import vectors
from tvm_bytes import Reader, read_functions, read_library
from vulkan_harness import TARGET, check_spirv, module_of, shaders_of

from targets import find_target
from targets.packing import Packed, string
from targets.tools import system_library
from targets.vulkan import export_library
from targets.vulkan.module import module_bytes
from targets.vulkan.spirv import compile_shaders

FUNCTIONS = {"collatz": collatz, "few": lambda: scalars(16), "many": lambda: scalars(17), "wide": lambda: vectors(4)}


def read_module(data: bytes):
    """TVM's module for Vulkan: format, {name: (name, types, tags, extra tags)}, {name: (flag, words)}."""
    reader = Reader(data)
    kind, functions, shaders = reader.text(), read_functions(reader), {}
    for _ in range(reader.take("Q")):
        name, shader = reader.text(), Reader(reader.bytes())
        flag, words = shader.take("I"), shader.list(lambda: shader.take("I"))
        assert shader.position == len(shader.data)
        shaders[name] = flag, words
    assert reader.position == len(data)
    return kind, functions, shaders


def instructions(words):
    """(opcode, operands) of a SPIR-V module."""
    assert words[0] == 0x07230203 and words[1] == 0x00010300  # version 1.3, that of Vulkan 1.1
    position = 5
    while position < len(words):
        count = words[position] >> 16
        yield words[position] & 0xFFFF, words[position + 1:position + count]
        position += count
    assert position == len(words)


def entry_points(words) -> list[str]:
    return [struct.pack(f"<{len(operands) - 2}I", *operands[2:]).split(b"\0")[0].decode()
            for opcode, operands in instructions(words) if opcode == 15]


@pytest.fixture(scope="module")
def shaders():
    return shaders_of({name: make() for name, make in FUNCTIONS.items()})


def test_round_trip(shaders):
    kind, functions, codes = read_module(module_bytes(shaders))
    assert kind == "vulkan" and set(functions) == set(codes) == {f"{name}_kernel" for name in FUNCTIONS}
    for name, (again, types, tags, extra) in functions.items():
        assert again == name and len(extra) == len(types) and not any(extra)
        assert tags == ["blockIdx.x", "threadIdx.x"]
        assert entry_points(codes[name][1]) == [name]
    assert functions["collatz_kernel"][1] == [(3, 64, 1)] * 2
    pointer, *values = functions["few_kernel"][1]  # TVM sorts the rest; the shader reads sizes as int32
    assert pointer == (3, 64, 1) and sorted(values) == sorted([(0, 32, 1), (0, 32, 1), (2, 32, 1), (1, 32, 1)] * 4)
    assert {name: flag for name, (flag, _) in codes.items()} == {
        "collatz_kernel": 0, "few_kernel": 0, "many_kernel": 1, "wide_kernel": 0}


def test_scalars_have_slots_of_eight_bytes(shaders):
    _, _, codes = read_module(module_bytes(shaders))
    for name, count in (("few_kernel", 16), ("many_kernel", 17)):
        offsets = [operands[3] for opcode, operands in instructions(codes[name][1])
                   if opcode == 72 and operands[2] == 35 and operands[3] % 8 == 0]  # OpMemberDecorate, Offset
        assert sorted(set(offsets)) == list(range(0, 8 * count, 8))


def test_buffers_are_bound_in_the_order_of_arguments(shaders):
    _, _, codes = read_module(module_bytes(shaders))
    for name, buffers in (("collatz_kernel", 2), ("few_kernel", 1), ("many_kernel", 2), ("wide_kernel", 2)):
        decorations = [operands[1:] for opcode, operands in instructions(codes[name][1]) if opcode == 71]  # OpDecorate
        assert {operands[1] for operands in decorations if operands[0] == 33} == set(range(buffers))  # Binding
        assert {operands[1] for operands in decorations if operands[0] == 34} == {0}  # DescriptorSet


@pytest.mark.parametrize(("constant", "word"), [
    ("uint16_t a = uint16_t(54524); y[0] = int16_t(a);", 0xFFFFD4FC),
    ("y[0] = float16BitsToInt16(float16_t(-77.0));", 0xFFFFD4D0)])
def test_small_constants_fill_their_words_with_their_sign(constant, word):
    """spirv-opt 2022.4 leaves zeros there."""
    (shader,) = shaders_of({"y": vectors(4)})
    header = shader.source[:shader.source.index("layout")]
    source = f"""{header}layout(std430, binding = 0) buffer Y {{ int16_t y[]; }}; void main() {{ {constant} }}"""
    made = replace(shader, source=source)
    (code,) = compile_shaders([made])
    found = list(instructions(struct.unpack(f"<{len(code) // 4}I", code)))
    (short,) = [operands[0] for opcode, operands in found if opcode == 21 and operands[1:] == (16, 1)]  # OpTypeInt
    assert word in [operands[2] for opcode, operands in found if opcode == 43 and operands[0] == short]  # OpConstant
    if shutil.which("spirv-val"):
        check_spirv(made, code)


def test_modules_are_joined_as_tvm_reads_them():
    before = struct.pack("<7Q", 3, 0, 1, 1, 1, 1, 4) + b"_lib"
    before = struct.pack("<Q", len(before)) + before
    packed = Packed.parse(before)
    assert packed.to_bytes() == before
    packed.append("vulkan", b"content")
    joined = packed.to_bytes()
    rows, columns, modules = read_library(joined)
    assert (rows, columns, modules) == ([0, 1, 1], [1], [("_lib", None), ("vulkan", b"content")])
    assert Packed.parse(joined).to_bytes() == joined
    for damaged in (before[:-4] + b"\x05lib", before[:-1], before + b"\0", joined):
        with pytest.raises(RuntimeError, match="in another way"):
            Packed.parse(damaged).append("vulkan", b"content")


def test_a_module_is_replaced():
    body = struct.pack("<7Q", 3, 0, 1, 1, 1, 1, 4) + b"_lib" + string("cuda") + string(b"x")
    packed = Packed.parse(struct.pack("<Q", len(body)) + body)
    packed.replace("cuda", lambda content: 2 * content)
    assert read_library(packed.to_bytes())[2] == [("_lib", None), ("cuda", b"xx")]


def test_a_system_library_holds_the_same_bytes(tmp_path):
    target = find_target("vulkan:android")
    module = module_of({"collatz": collatz()}).with_attr("system_lib_prefix", "prefix_")
    executable = tvm.compile(module, target.tvm_target)
    export_library(executable, str(tmp_path / "kernels.tar"), system_library().link)
    with tarfile.open(tmp_path / "kernels.tar") as tar:
        objects = {member.name.removeprefix("./"): tar.extractfile(member).read() for member in tar if member.isfile()}
    assert set(objects) == {"lib0.o", "prefix_devc.o"}
    assert module_bytes(shaders_of({"collatz": collatz()})) in objects["prefix_devc.o"]
    assert find_target("vulkan").tvm_target.kind == TARGET.kind
