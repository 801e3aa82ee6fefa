"""Small compute shaders for tests of the Vulkan runtime, as modules in TVM's bytes, made by hand."""

import shutil
import struct
import subprocess
from ctypes import c_void_p
from functools import cache, partial

import counters
import pytest

from runtime_py.tvm_runtime import load_runtime

FLOAT32, INT32, POINTER = (2, 32, 1), (0, 32, 1), (3, 64, 1)  # DLDataType: code, bits, lanes
ADD_ARGUMENTS = (POINTER, FLOAT32, INT32)
ADD = """#version 450
layout(local_size_x = 64) in;
layout(std430, binding = 0) buffer X { float x[]; };
layout(push_constant) uniform Numbers { layout(offset = 0) float value; layout(offset = 8) int n; };
void main() {
  int i = int(gl_GlobalInvocationID.x);
  if (i < n) x[i] += value;
}
"""
SUM = """#version 450
layout(local_size_x = 64) in;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer Y { float y[]; };
layout(std430, binding = 2) buffer Z { float z[]; };
layout(push_constant) uniform Numbers { layout(offset = 0) int n; };
void main() {
  int i = int(gl_GlobalInvocationID.x);
  if (i < n) z[i] = x[i] + y[i];
}
"""
MANY = 20  # numbers: more than push constants hold
# x[i] = sum over j of (j + 1) * number j
WEIGHTED = f"""#version 450
#define COUNT {MANY}
layout(local_size_x = 1) in;
layout(std430, binding = 0) buffer X {{ int x[]; }};
layout(std140, binding = 1) uniform Numbers {{ ivec4 number[COUNT / 2]; }};
void main() {{
  int total = 0;
  for (int j = 0; j < COUNT; ++j) total += (j + 1) * number[j / 2][j % 2 * 2];
  x[gl_WorkGroupID.x] = total;
}}
"""
HALF = """#version 450
#extension GL_EXT_shader_explicit_arithmetic_types : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
layout(local_size_x = 32) in;
layout(std430, binding = 0) buffer X { float16_t x[]; };
layout(std430, binding = 1) buffer Y { int8_t y[]; };
shared float16_t staged[32];
void main() {
  uint i = gl_LocalInvocationID.x;
  staged[i] = x[i];
  barrier();
  x[i] = staged[31 - i] * float16_t(y[i]);
}
"""


@cache
def words(source, name):
    """SPIR-V with entry point ``name``: glslc calls it main."""
    if shutil.which("glslc") is None:
        pytest.skip("glslc is missing; install it with: apt install glslc")
    made = subprocess.run(["glslc", "--target-env=vulkan1.1", "-O", "-fshader-stage=compute", "-", "-o", "-"],
                          input=source.encode(), capture_output=True, check=True).stdout
    found = list(struct.unpack(f"<{len(made) // 4}I", made))
    at = 5
    while found[at] & 0xFFFF != 15:  # OpEntryPoint: model, function, name, variables
        at += found[at] >> 16
    text = name.encode() + bytes(4 - len(name) % 4)
    end = at + (found[at] >> 16)
    entry = [*found[at + 1:at + 3], *struct.unpack(f"<{len(text) // 4}I", text), *found[at + 5:end]]
    assert found[at + 3:at + 5] == [0x6E69616D, 0]  # "main"
    return (*found[:at], (len(entry) + 1) << 16 | 15, *entry, *found[end:])


def number(value):
    return struct.pack("<Q", value)


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return number(len(data)) + data


def module_bytes(name, code, arguments, *, flags=0, tags=("blockIdx.x", "threadIdx.x"), shader=None):
    """The bytes of a module with one kernel: TVM's serialized form."""
    inner = struct.pack("<I", flags) + number(len(code)) + struct.pack(f"<{len(code)}I", *code)
    return b"".join([
        string("vulkan"), number(1), string(name), string(name), number(len(arguments)),
        *(struct.pack("<BBH", *argument) for argument in arguments), number(len(tags)), *map(string, tags),
        number(len(arguments)), *(struct.pack("<i", 0) for _ in arguments),
        number(1), string(shader or name), string(inner)])


def load_bytes(data):
    return load_runtime().get_global_func("ffi.Module.load_from_bytes.vulkan")(data)


def load_module(name, source, arguments, **options):
    return load_bytes(module_bytes(name, words(source, name), arguments, **options))


def load_kernel(name, source, arguments, **options):
    """A kernel as a function of addresses, numbers and launch extents."""
    return load_module(name, source, arguments, **options)[name]


def load_add(name="add"):
    """add(address, value, n, groups, 64)."""
    return load_kernel(name, ADD, ADD_ARGUMENTS)


def load_sum():
    """sum(x, y, z, n, groups, 64): z = x + y."""
    return load_kernel("sum", SUM, (POINTER, POINTER, POINTER, INT32))


def load_weighted():
    """weighted(x, number 0, ..., number MANY - 1, groups, 1)."""
    return load_kernel("weighted", WEIGHTED, (POINTER, *[INT32] * MANY), flags=1)


def load_half():
    """half(x float16 [32], y int8 [32], 1, 32): x = y * x backwards."""
    return load_kernel("half", HALF, (POINTER, POINTER))


def address(tensor):
    """What host code passes to kernels for a tensor."""
    return c_void_p(tensor.data_ptr())


counter = partial(counters.counter, "vulkan")
