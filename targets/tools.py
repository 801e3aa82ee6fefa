"""What a target needs of this machine: to link libraries, and to run them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm.support import cc, tar

from blockffn_mlc.errors import UserError
from blockffn_mlc.target import Form

PAGE_BYTES = 16384  # of Android 15 and later; libraries for it also load where pages are smaller
_LINKING = ["-shared", "-z", f"max-page-size={PAGE_BYTES}", "-z", f"common-page-size={PAGE_BYTES}"]
_NDK_VARIABLES = ("ANDROID_NDK", "ANDROID_NDK_HOME")
_NDK_CLANG = "toolchains/llvm/prebuilt/*/bin/aarch64-linux-android24-clang"  # MLC's version of Android's interface
_MACOS = "13.0"
# Every library for macOS names this one; its symbols, libm's among them, are looked up when it is loaded.
_LIB_SYSTEM = """--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos ]
install-name: /usr/lib/libSystem.B.dylib
current-version: 1
compatibility-version: 1
exports:
  - targets: [ arm64-macos ]
    symbols: [ dyld_stub_binder ]
...
"""


@dataclass(frozen=True)
class Tool:
    """Something outside this package. ``purpose``: what it is needed for. ``find()``: where it is, None if it is not.
    ``install``: how to get it."""

    name: str
    purpose: str
    find: Callable[[], str | None]
    install: str
    to_build: bool = True

    def check(self) -> None:
        """Raise UserError when it is missing."""
        if not self.find():
            raise UserError(f"no {self.name} found {self.purpose}; install one ({self.install})")


def _opencl_driver() -> str | None:
    vendors = Path(os.environ.get("OCL_ICD_VENDORS", "/etc/OpenCL/vendors"))  # a folder or one of its files
    drivers = [str(path) for path in sorted(vendors.glob("*.icd")) or [vendors] if path.is_file()]
    named = os.environ.get("OCL_ICD_FILENAMES", "")
    return ", ".join([*drivers, *filter(None, named.split(":"))]) or None


def _vulkan_driver() -> str | None:
    named = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    folders = (Path(folder) / "vulkan/icd.d" for folder in ("/etc", "/usr/share", "/usr/local/share"))
    return named or ", ".join(sorted(str(path) for folder in folders for path in folder.glob("*.json"))) or None


def _ndk() -> tuple[str, str] | None:
    """The variable that names the NDK's folder, and its value."""
    return next(((name, os.environ[name]) for name in _NDK_VARIABLES if os.environ.get(name)), None)


def _ndk_clang() -> str | None:
    ndk = _ndk()
    return next((str(path) for path in sorted(Path(ndk[1]).glob(_NDK_CLANG))), None) if ndk else None


def _android_linker() -> str | None:
    return _ndk_clang() if _ndk() else _lld()


def _check_android_linker() -> None:
    ndk = _ndk()
    if ndk and not _ndk_clang():
        raise UserError(f"{ndk[0]}={ndk[1]}: not the folder of Android's NDK, there is no {_NDK_CLANG} in it; set the "
                        "variable to that folder, or unset it to link with lld")
    ANDROID_LINKER.check()


def _header(name: str) -> Callable[[], str | None]:
    """Finds a header of C where the C++ compiler does."""
    def find() -> str | None:
        compiler = cc.get_cc()
        if not compiler:
            return None
        done = subprocess.run([compiler, "-x", "c++", "-M", "-"], input=f"#include <{name}>", capture_output=True,
                              text=True)
        found = (path for path in done.stdout.replace("\\\n", " ").split() if path.endswith(name))
        return next(found, None) if done.returncode == 0 else None

    return find


def _arm_compiler() -> str | None:
    if platform.machine() == "aarch64":
        return cc.get_cc()
    return shutil.which("aarch64-linux-gnu-g++") or shutil.which("aarch64-linux-gnu-gcc")


def _lld() -> str | None:
    return shutil.which("ld.lld")


def _mac_linker() -> str | None:
    return cc.get_cc() if sys.platform == "darwin" else shutil.which("lld")


COMPILER = Tool("C++ compiler", "to link the library", lambda: cc.get_cc(),
                "c++, g++ or clang++, for example with: apt-get install g++; or set CXX")
ANDROID_LINKER = Tool("linker for Android", "to link the library", _android_linker,
                      "Android's NDK with ANDROID_NDK set to its folder, or lld, for example with: apt-get install lld")
ARM_LINKER = Tool("linker for aarch64", "to link the library", lambda: _arm_compiler() or _lld(),
                  "lld or a cross compiler, for example with: apt-get install lld")
MAC_LINKER = Tool("linker for macOS", "to link the library", _mac_linker,
                  "lld, for example with: apt-get install lld; on a Mac Apple's command line tools")
# What runtime_py/devices compiles its runtimes with, at the first use of a device.
NINJA = Tool("ninja", "to compile what runs the library here", lambda: shutil.which("ninja"),
             "apt-get install ninja-build", to_build=False)
OPENCL_HEADERS = Tool("OpenCL's headers", "to compile what runs the library here", _header("CL/cl.h"),
                      "with the loader: apt-get install opencl-headers ocl-icd-opencl-dev", to_build=False)
VULKAN_HEADERS = Tool("Vulkan's headers", "to compile what runs the library here", _header("vulkan/vulkan.h"),
                      "with the loader: apt-get install libvulkan-dev", to_build=False)
OPENCL_DRIVER = Tool("OpenCL driver", "to run the library here", _opencl_driver,
                     "the GPU's, or a processor's with: apt-get install pocl-opencl-icd", to_build=False)
VULKAN_DRIVER = Tool("Vulkan driver", "to run the library here", _vulkan_driver,
                     "the GPU's, or a processor's with: apt-get install mesa-vulkan-drivers", to_build=False)


def host_library() -> Form:
    """A shared library for this machine."""
    return Form(".so", cc.create_shared, COMPILER.check)


def android_library() -> Form:
    """A shared library for 64-bit Android, linked by the NDK's clang where ANDROID_NDK names one, else by lld alone."""
    return Form(".so", lambda path, objects, **_: _link(_ndk_clang(), path, objects), _check_android_linker)


def arm_library() -> Form:
    """A shared library for 64-bit ARM Linux, linked by a compiler for it where there is one, else by lld alone."""
    return Form(".so", lambda path, objects, **_: _link(_arm_compiler(), path, objects), ARM_LINKER.check)


def mac_library() -> Form:
    """A shared library for Macs with Apple's processors: by the compiler on a Mac, else by lld's linker for them."""
    return Form(".dylib", _link_mac, MAC_LINKER.check)


def system_library() -> Form:
    """Objects that an app is linked with; needs nothing."""
    return Form(".tar", tar.tar, lambda: None, system_lib=True)


def _link(compiler: str | None, path: str, objects: Sequence[str]) -> None:
    """Make a shared library. lld alone knows no libm: its symbols stay undefined, as TVM's do."""
    _run([compiler or _lld(), *_LINKING, "-o", path, *objects, *(["-lm"] if compiler else [])])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr}")


def _link_mac(path: str, objects: Sequence[str], **_: object) -> None:
    """Make a shared library for macOS, whose loader looks for TVM's functions in the process."""
    if sys.platform == "darwin":
        cc.create_shared(path, list(objects), options=["-undefined", "dynamic_lookup"])
        return
    with tempfile.TemporaryDirectory() as folder:
        system = Path(folder) / "libSystem.tbd"
        system.write_text(_LIB_SYSTEM, encoding="utf-8")
        _run([_mac_linker(), "-flavor", "darwin", "-dylib", "-arch", "arm64", "-platform_version", "macos", _MACOS,
              _MACOS, "-undefined", "dynamic_lookup", "-install_name", f"@rpath/{Path(path).name}", "-o", path,
              *objects, str(system)])
