"""Compiles TVM's CUDA C++ and MSL for this machine's processor."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from targets.limits import kernel_sources

INCLUDE = Path(__file__).parent / "include"
FLAGS = ("-std=gnu++17", "-O1", "-fPIC", "-shared", "-w", "-fvisibility=hidden", "-fno-strict-aliasing",
         "-fsanitize=alignment,bounds")
_HEADERS = {"cuda": "cuda_fp16.h", "metal": "metal_stdlib"}
_HALF_IN_HARDWARE = ("-mf16c",)  # of every x86 processor of the last ten years
# Of each kernel a function: extents of the launch, slots of 8 bytes with the arguments; null or what went wrong.
_ENTRY = """
extern char __start_shared_{name}[] __attribute__((weak, visibility("hidden")));
extern char __stop_shared_{name}[] __attribute__((weak, visibility("hidden")));
extern "C" __attribute__((visibility("default")))
const char* shim_{name}(const size_t* extents, const uint64_t* slots) {{
  return shim::Launch(extents, __start_shared_{name}, __stop_shared_{name}, [slots] {{ shim::Call({called}, slots); }});
}}
"""
_ASSEMBLY = re.compile(r'asm volatile\("([\w.]+) ([^"]*);" : ([^;]*)\);')


def translate(kind: str, source: str) -> str:
    """C++ for the kernels of a module. Shared memory of each lies in a section of its own; every kernel of Metal is a
    program of its own, with types of its own."""
    parts = [f'#include "{_HEADERS[kind]}"\n', _ASSEMBLY.sub(_call, source.partition("// Function: ")[0])]
    for name, text in kernel_sources(source).items():
        parts.append(f'#undef SHIM_SHARED\n#define SHIM_SHARED __attribute__((section("shared_{name}")))\n')
        if kind == "metal":
            text = re.sub(r"^( *)threadgroup (\w+ \w+\[)", r"\1static SHIM_SHARED \2", text, flags=re.MULTILINE)
            text = f"namespace of_{name} {{\n{text}\n}}\n"
        called = f"of_{name}::{name}" if kind == "metal" else name
        parts += [text, _ENTRY.format(name=name, called=called)]
    return "".join(parts)


def _call(assembly: re.Match[str]) -> str:
    """For an instruction whose operands stand in the order of their registers, a call of its function in the shims."""
    instruction, registers, operands = assembly.groups()
    names = re.findall(r'"=?\w"\((\w+)\)', operands)
    assert re.findall(r"%(\d+)", registers) == [str(i) for i in range(len(names))], assembly[0]
    return f"shim::{instruction.replace('.', '_')}({', '.join(names)});"


def compile_kernels(kind: str, source: str, library: Path) -> None:
    """Write a shared library with the kernels of a module for ``kind``, "cuda" or "metal"."""
    text = library.with_suffix(".cc")
    text.write_text(translate(kind, source), encoding="utf-8")
    half = _HALF_IN_HARDWARE if os.uname().machine == "x86_64" else ()
    done = subprocess.run([os.environ.get("CXX", "c++"), *FLAGS, *half, f"-I{INCLUDE / kind}", "-o", str(library),
                           str(text)], capture_output=True, text=True)
    assert done.returncode == 0, f"{kind}: the kernels' text does not compile:\n{done.stderr[:4000]}"
