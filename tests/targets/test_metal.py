"""Libraries for Macs and iPhones, as this machine can make them."""

import re
import struct
import sys

import numpy as np
import pytest
import tvm
from building import build
from checkpoints import MLA, write_random_checkpoint
from elf import objects
from small_library import small_graph
from tvm.script.ir_builder import tirx as T
from tvm_bytes import Reader, read_functions

from blockffn_mlc import builder
from blockffn_mlc.libraries import write_libraries
from schedules.builder import kernel
from targets import find_target, tools
from targets.packing import Packed

MAGIC, DYLIB, ARM64 = 0xFEEDFACF, 6, 0x0100000C  # Mach-O, 64 bits
OBJECT = 1
LOAD_DYLIB, ID_DYLIB, CODE_SIGNATURE = 0xC, 0xD, 0x1D


def header(data):
    """Kind of file and load commands, (command, bytes) each, of a Mach-O file for ARM."""
    magic, machine, _, kind, count, _, _, _ = struct.unpack_from("<8I", data)
    assert (magic, machine) == (MAGIC, ARM64)
    commands, position = [], 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, position)
        commands.append((command & 0x7FFFFFFF, data[position:position + size]))
        position += size
    return kind, commands


def test_a_library_for_macs(tmp_path):
    if tools.MAC_LINKER.find() is None:
        pytest.skip(f"no linker for macOS; install {tools.MAC_LINKER.install}")
    write_libraries(small_graph(), find_target("metal"), tmp_path / "library", "small_test_", lambda stage: None)
    kind, commands = header((tmp_path / "library.dylib").read_bytes())
    assert kind == DYLIB
    loaded = [data for command, data in commands if command == LOAD_DYLIB]
    if sys.platform != "darwin":
        assert len(loaded) == 1 and b"/usr/lib/libSystem.B.dylib\0" in loaded[0]
    assert b"@rpath/library.dylib" in next(data for command, data in commands if command == ID_DYLIB)
    assert CODE_SIGNATURE in [command for command, _ in commands]


@pytest.mark.parametrize("name", ["metal", "iphone"])
def test_objects_for_apps(name, tmp_path):
    target = find_target(name)
    (form,) = [form for form in target.forms if form.system_lib]
    executable = tvm.compile(tvm.IRModule({"add": next(iter(small_graph().kernels().values())).with_attr(
        "global_symbol", "add")}).with_attr("system_lib_prefix", "small_test_"), target.tvm_target)
    target.export(executable, str(tmp_path / "library.tar"), form.link)
    found = objects(tmp_path / "library.tar")
    assert set(found) == {"lib0.o", "small_test_devc.o"}
    assert all(header(file.read())[0] == OBJECT for file in found.values())
    content = dict(Packed.of(executable).modules)["metal"]
    reader = Reader(content)
    assert reader.text() == "metal"
    (kernel,) = read_functions(reader)
    assert reader.take("Q") == 1 and reader.text() == kernel
    assert f"kernel void {kernel}(" in reader.text() and reader.position == len(content)


def test_an_artifact_for_iphones_says_how_to_link_it(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "write_libraries", lambda *_: {})  # compiling those takes long
    write_random_checkpoint(tmp_path / "model", MLA)
    build("--model", tmp_path / "model", "--target", "iphone", "--quantization", "q0f16", "-o", tmp_path / "phone",
          "--system-lib-prefix", "tiny_model_")
    text = (tmp_path / "phone" / "README.md").read_text()
    for words in ("tar -xf lib/blockffn-q0f16-iphone.tar", "-force_load", '"tiny_model_"', "8 /* Metal */", "iOS 16",
                  "256 threads", "32 KB of threadgroup memory", "256 MB", "Kernels need half precision",
                  "--target iphone --quantization q0f16 --package", "nor has anybody reported"):
        assert words in text, words
    assert "$" not in text and "Android" not in text and "OpenCL" not in text


def test_numbers_keep_their_bits():
    """TVM prints seven digits; lowest float32 and a third are others then."""
    numbers = (-3.4028234663852886e38, 1 / 3, 0.5, 1e-5)
    with kernel(__name__) as k:
        y = k.tensor((4,))
        with T.launch_thread("threadIdx.x", 1) as i:
            for place, number in enumerate(numbers):
                T.buffer_store(y, T.float32(number), [i + place])
    module = tvm.IRModule({"main": k.func.with_attr("global_symbol", "main")})
    text = tvm.compile(module, find_target("metal").tvm_target).mod.imports[0].inspect_source("")
    stored = re.findall(r"\] = (.*);", text)
    bits = [np.float32(number).view(np.uint32) for number in numbers]
    assert stored == [f"(as_type<float>((uint){bits[0]}))", f"(as_type<float>((uint){bits[1]}))", "5.000000e-01f",
                      "1.000000e-05f"]
