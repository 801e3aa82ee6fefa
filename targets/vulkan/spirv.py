"""GLSL to SPIR-V with glslc, in parallel, each shader once: results are kept in the cache folder by content."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blockffn_mlc.errors import UserError
from runtime_py.devices.program_cache import ProgramCache

from ..tools import Tool
from .binary import capabilities, with_entry_point, with_sound_constants
from .shader import Shader

GLSLC = Tool("glslc", "to compile shaders", lambda: shutil.which("glslc"),
             "from Google's shaderc, for example with: apt-get install glslc; or LunarG's Vulkan SDK")
ENVIRONMENT = "vulkan1.1"
_ARGUMENTS = ("-fshader-stage=compute", f"--target-env={ENVIRONMENT}", "-O")
_CACHE = ProgramCache("spirv")
# What shaders may ask of a device; anything else would be a mistake of ours. Numbers: the SPIR-V specification, 3.31.
CAPABILITIES = {1: "Shader", 9: "Float16", 10: "Float64", 11: "Int64", 22: "Int16", 39: "Int8",
                4433: "StorageBuffer16BitAccess", 4434: "UniformAndStorageBuffer16BitAccess",
                4448: "StorageBuffer8BitAccess", 4449: "UniformAndStorageBuffer8BitAccess"}


class BadShader(UserError):
    """A mistake of the code generator; all the same a sentence, since another target may do."""


def compile_shaders(shaders: Sequence[Shader]) -> list[bytes]:
    """SPIR-V of each, whose entry point has the shader's name. Raises UserError when glslc is missing or does not run,
    BadShader when it refuses one."""
    GLSLC.check()
    by_source = {shader.source: shader for shader in shaders}  # equal kernels are compiled once
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = dict(zip(by_source, pool.map(_compiled, by_source.values())))
    return [with_entry_point(codes[shader.source], shader.name) for shader in shaders]


def _compiled(shader: Shader) -> bytes:
    key = "\0".join((_version(), *_ARGUMENTS, shader.source)).encode()
    code = _CACHE.load(key)
    if code is None:
        code = _compile(shader)
        _CACHE.store(key, code)
    return code


@functools.cache
def _version() -> str:
    done = _run("--version", text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise UserError(f"{GLSLC.find()} --version ends with {done.returncode} and says {said[-1]!r}; install another "
                        f"({GLSLC.install})")
    return done.stdout


def _run(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run glslc. Raises UserError when the machine cannot."""
    try:
        return subprocess.run([GLSLC.find(), *arguments], capture_output=True, **options)
    except OSError as error:
        raise UserError(f"{GLSLC.find()} does not run ({error.strerror}); install another ({GLSLC.install})") from None


def _compile(shader: Shader) -> bytes:
    done = _run(*_ARGUMENTS, "-", "-o", "-", input=shader.source.encode())
    if done.returncode:
        raise BadShader(f"kernel {shader.name}: glslc refuses the shader made of it, a mistake of the code "
                        f"generator: {done.stderr.decode()[:2000].strip()}; choose another target")
    code = with_sound_constants(done.stdout)
    unknown = capabilities(code) - set(CAPABILITIES)
    if unknown:
        raise BadShader(f"kernel {shader.name}: its shader asks for SPIR-V's capabilities {sorted(unknown)}, which "
                        "none of ours should, a mistake of the code generator; choose another target")
    return code
