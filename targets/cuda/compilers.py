"""NVIDIA's compilers: CUDA C++ to machine code (cubin) and to PTX, by NVRTC, a library, or by nvcc, a program."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from blockffn_mlc.errors import UserError

from ..tools import Tool

INSTALL = ("pip install -e '.[cuda]', which brings nvidia-cuda-nvrtc, nvidia-cuda-runtime, nvidia-cuda-cccl and "
           "nvidia-nvfatbin, or a CUDA toolkit with nvcc")
_VERBOSE = "-v"  # of ptxas: registers and spills of every kernel


class Cubin(NamedTuple):
    """Machine code for ``architecture`` ("sm_90"); ``log``: what ptxas says of each kernel."""

    architecture: str
    code: bytes
    log: str


class Compiler(ABC):
    """``name``: with where it is."""

    name: str

    @abstractmethod
    def architectures(self) -> list[str]:
        """Those that it compiles for: "sm_80", ..."""

    @abstractmethod
    def cubin(self, source: str, architecture: str) -> Cubin:
        """Raises UserError with the compiler's words."""

    @abstractmethod
    def ptx(self, source: str, architecture: str) -> bytes:
        """For devices of ``architecture`` and all newer ones. Raises UserError with the compiler's words."""

    @abstractmethod
    def fatbin(self, cubins: Sequence[Cubin], ptx: bytes, ptx_architecture: str) -> bytes:
        """One file from which the driver takes what fits its device. Raises UserError."""


class Nvrtc(Compiler):
    """``folder``: of NVIDIA's packages, with lib and include."""

    def __init__(self, folder: Path) -> None:
        self.name = f"NVRTC in {folder}"
        self._headers = [folder / "include", folder / "include" / "cccl"]
        for library in sorted((folder / "lib").glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # NVRTC looks for it by its name alone
        self._nvrtc = ctypes.CDLL(str(next((folder / "lib").glob("libnvrtc.so.*"))))
        self._nvfatbin = ctypes.CDLL(str(next((folder / "lib").glob("libnvfatbin.so.*"))))

    @classmethod
    def find(cls) -> Path | None:
        """The folder of the packages, if all of them are there."""
        package = importlib.util.find_spec("nvidia")
        for base in package.submodule_search_locations or () if package else ():
            for folder in sorted(Path(base).glob("cu*"), reverse=True):
                needed = ("lib/libnvrtc.so.*", "lib/libnvfatbin.so.*", "include/cuda_fp16.h", "include/cccl/nv/target")
                if all(next(folder.glob(pattern), None) for pattern in needed):
                    return folder
        return None

    def architectures(self) -> list[str]:
        count = ctypes.c_int()
        self._nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._nvrtc.nvrtcGetSupportedArchs(numbers)
        return [f"sm_{number}" for number in numbers]

    def cubin(self, source: str, architecture: str) -> Cubin:
        options = [f"--gpu-architecture={architecture}", f"--ptxas-options={_VERBOSE}"]
        return Cubin(architecture, *self._compile(source, options, "CUBIN"))

    def ptx(self, source: str, architecture: str) -> bytes:
        return self._compile(source, [f"--gpu-architecture={_virtual(architecture)}"], "PTX")[0]

    def fatbin(self, cubins: Sequence[Cubin], ptx: bytes, ptx_architecture: str) -> bytes:
        library, handle, size = self._nvfatbin, ctypes.c_void_p(), ctypes.c_size_t()
        options = (ctypes.c_char_p * 1)(b"-64")

        def call(name: str, *arguments: object) -> None:
            if code := getattr(library, f"nvFatbin{name}")(*arguments):
                raise UserError(f"nvFatbin{name} failed with code {code}; install NVIDIA's packages of one version "
                                f"({INSTALL})")

        call("Create", ctypes.byref(handle), options, 1)
        for cubin in cubins:
            call("AddCubin", handle, cubin.code, ctypes.c_size_t(len(cubin.code)), _number(cubin.architecture).encode(),
                 cubin.architecture.encode())
        call("AddPTX", handle, ptx, ctypes.c_size_t(len(ptx)), _number(ptx_architecture).encode(), b"ptx", None)
        call("Size", handle, ctypes.byref(size))
        result = ctypes.create_string_buffer(size.value)
        call("Get", handle, result)
        call("Destroy", ctypes.byref(handle))
        return result.raw

    def _compile(self, source: str, options: Sequence[str], kind: str) -> tuple[bytes, str]:
        program = ctypes.c_void_p()
        self._nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        given = [*options, "-w", "-default-device", *(f"-I{folder}" for folder in self._headers)]
        failed = self._nvrtc.nvrtcCompileProgram(
            program, len(given), (ctypes.c_char_p * len(given))(*map(str.encode, given)))
        log = self._result(program, "ProgramLog").decode(errors="replace").rstrip("\0")
        code = b"" if failed else self._result(program, kind)
        self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        if failed:
            raise _refused("NVRTC", log)
        return code.rstrip(b"\0") if kind == "PTX" else code, log

    def _result(self, program: ctypes.c_void_p, kind: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        result = ctypes.create_string_buffer(size.value)
        getattr(self._nvrtc, f"nvrtcGet{kind}")(program, result)
        return result.raw


class Nvcc(Compiler):
    """``path``: the program, beside whose real place fatbinary is."""

    def __init__(self, path: str) -> None:
        self.name, self._path = f"nvcc, {path}", path

    def architectures(self) -> list[str]:
        said = subprocess.run([self._path, "--list-gpu-code"], capture_output=True, text=True).stdout
        return re.findall(r"^sm_\d+$", said, re.MULTILINE)

    def cubin(self, source: str, architecture: str) -> Cubin:
        code, log = self._compile(source, "-cubin", f"-arch={architecture}", f"-Xptxas={_VERBOSE}")
        return Cubin(architecture, code, log)

    def ptx(self, source: str, architecture: str) -> bytes:
        return self._compile(source, "-ptx", f"-arch={_virtual(architecture)}")[0]

    def fatbin(self, cubins: Sequence[Cubin], ptx: bytes, ptx_architecture: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            images = []
            for kind, architecture, code in [*(("elf", cubin.architecture, cubin.code) for cubin in cubins),
                                             ("ptx", ptx_architecture, ptx)]:
                path = Path(folder) / f"{architecture}.{kind}"
                path.write_bytes(code)
                images.append(f"--image3=kind={kind},sm={_number(architecture)},file={path}")
            made = Path(folder) / "kernels.fatbin"
            self._run([self._tool("fatbinary"), f"--create={made}", "-64", *images])
            return made.read_bytes()

    def _tool(self, name: str) -> str:
        """A program beside nvcc, which is where nvcc says its own folder is: its path may be a script."""
        said = subprocess.run([self._path, "-dryrun", "-cubin", os.devnull], capture_output=True, text=True).stderr
        top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
        return str(Path(top[1]) / "bin" / name) if top else name

    def _compile(self, source: str, *options: str) -> tuple[bytes, str]:
        with tempfile.TemporaryDirectory() as folder:
            text, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.out"
            text.write_text(source, encoding="utf-8")
            log = self._run([self._path, *options, "-w", "-o", str(made), str(text)])
            return made.read_bytes(), log

    @staticmethod
    def _run(command: list[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise UserError(f"{command[0]} cannot be run ({error.strerror}); install CUDA's compilers ({INSTALL})"
                            ) from None
        if done.returncode:
            raise _refused(Path(command[0]).name, done.stderr + done.stdout)
        return done.stderr + done.stdout


@cache
def find_compiler() -> Compiler | None:
    """NVRTC of NVIDIA's packages, else nvcc; None where there is neither."""
    if folder := Nvrtc.find():
        return Nvrtc(folder)
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    return Nvcc(nvcc) if nvcc else None


def _found() -> str | None:
    compiler = find_compiler()
    return compiler and compiler.name


CUDA_COMPILER = Tool("CUDA compiler", "to put machine code into the library (without one it holds source)", _found,
                     INSTALL, to_build=False)


def _number(architecture: str) -> str:
    return architecture.removeprefix("sm_")


def _virtual(architecture: str) -> str:
    return f"compute_{_number(architecture)}"


def _refused(compiler: str, log: str) -> UserError:
    lines = [line.strip() for line in log.splitlines() if "error" in line.lower() or "fatal" in line.lower()]
    said = lines[0] if lines else (log.strip().splitlines() or ["no message"])[-1]
    return UserError(f"{compiler} refuses the kernels ({said}); choose other --arch or another version of CUDA's "
                     "compilers")
