"""A 64-bit ARM Debian in a cache folder, with Python, this project's dependencies and PoCL, and programs in it run by
qemu-user: nothing is installed on the machine, nothing needs root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from blockffn_mlc.errors import UserError

MIRROR, SUITE, PYTHON = "http://deb.debian.org/debian", "bookworm", "3.11"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (f"python{PYTHON}", "pocl-opencl-icd", "ocl-icd-opencl-dev", "libstdc++-12-dev")
# What the runtime imports, in the versions that are installed here (TVM's must match what compiled the artifact); and
# what our tests need, in any.
PINNED = ("apache-tvm", "apache-tvm-ffi", "tokenizers")
WHEELS = ("numpy", "ml_dtypes", "rich", "safetensors", "jinja2", "pytest", "hypothesis")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64")
_FROM = {"qemu-aarch64": "qemu-user", "ld.lld": "lld", "ninja": "ninja-build", "clang++": "clang"}
_SITE = Path("opt", "site")  # in the root folder: Python packages
_READY = "ready.json"  # in the root folder: what it was made of
_REPOSITORY = Path(__file__).resolve().parents[1]
# Programs that emulated ones start are this machine's own. PoCL links kernels with "ld"; the device runtime for OpenCL
# is compiled with "c++".
_LIBRARIES = ("/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib/gcc/aarch64-linux-gnu/12")
_WRAPPERS = {
    "ld": f'exec ld.lld --sysroot="{{root}}" {" ".join(f"-L={path}" for path in _LIBRARIES)} "$@"',
    "c++": 'exec "{clang}" --target=aarch64-linux-gnu --sysroot="{root}" -fuse-ld=lld "$@"',
}


@dataclass(frozen=True)
class Sysroot:
    """A prepared ``folder``: ``root`` has the files of the ARM system, ``bin`` wrappers, ``run`` what runs leave."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def ready(self) -> bool:
        """Whether ``root`` is complete and what this version of the script makes."""
        stamp = self.root / _READY
        return stamp.is_file() and json.loads(stamp.read_text()) == _contents()

    def python(self, arguments: Sequence[str], processor: str, *,
               capture: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the emulated Python, with this repository's packages, on one of qemu's processors; ``capture`` what it
        prints."""
        site, repository = self.root / _SITE, str(_REPOSITORY)
        environment = {
            **os.environ, "PYTHONPATH": f"{site}:{repository}", "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CXX": str(self.folder / "bin" / "c++"), "BLOCKFFN_CACHE": str(self.folder / "run"),
            "POCL_CACHE_DIR": str(self.folder / "run" / "pocl"), "OPENBLAS_NUM_THREADS": "1",
            "OCL_ICD_VENDORS": str(self.folder / "vendors"),
        }
        environment.pop("OCL_ICD_FILENAMES", None)
        (self.folder / "run" / "pocl").mkdir(parents=True, exist_ok=True)
        command = ["qemu-aarch64", "-cpu", processor, "-L", str(self.root), str(self.root / f"usr/bin/python{PYTHON}"),
                   *arguments]
        return subprocess.run(command, env=environment, cwd=_REPOSITORY, capture_output=capture, text=True)


def prepare(folder: Path, progress: Callable[[str], None], *, opencl: bool = True) -> Sysroot:
    """The system in ``folder``, made now unless it is there. Raises UserError naming what is missing.

    ``opencl``: check that this machine has what programs in it need to use OpenCL, too. Downloads (250 MB) stay in
    ``folder``/debs and in pip's cache; unpacked they take 900 MB.
    """
    check_tools(opencl)
    sysroot = Sysroot(folder.absolute())
    if not sysroot.ready():
        check_preparation()
        temporary = sysroot.folder / "root.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        progress(f"fetching packages of Debian {SUITE} for arm64 into {sysroot.folder / 'debs'}")
        for package in _download_packages(sysroot.folder / "debs"):
            _run(["dpkg-deb", "-x", str(package), str(temporary)], f"{package} cannot be unpacked")
        progress("fetching Python packages for aarch64")
        _install_wheels(temporary / _SITE)
        (temporary / _READY).write_text(json.dumps(_contents()))
        shutil.rmtree(sysroot.root, ignore_errors=True)
        os.replace(temporary, sysroot.root)
    _write_wrappers(sysroot)
    return sysroot


def check_tools(opencl: bool) -> None:
    """Raise UserError when this machine lacks a program that running, or running with OpenCL, needs."""
    found = {"qemu-aarch64": shutil.which("qemu-aarch64"), "ld.lld": shutil.which("ld.lld")}
    if opencl:
        found |= {"ninja": shutil.which("ninja"), "clang++": _clang()}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise UserError(f"emulating 64-bit ARM needs {', '.join(missing)}; install what is missing, for example with: "
                        f"apt-get install {' '.join(_FROM[name] for name in missing)}")


def check_preparation() -> None:
    """Raise UserError when this machine lacks what unpacking another architecture's packages needs."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UserError(f"{program} is missing: the ARM system is made of Debian packages; run this on Debian or "
                            "Ubuntu")
    if not KEYRING.is_file():
        raise UserError(f"{KEYRING} is missing, with which Debian's packages are checked; install it, for example "
                        "with: apt-get install debian-archive-keyring")


def apt_options(folder: Path) -> list[str]:
    """Options that make apt keep to ``folder``, for arm64, as if no package were installed."""
    settings = {
        "Dir::State": folder, "Dir::State::lists": folder / "lists", "Dir::State::status": folder / "status",
        "Dir::Cache": folder, "Dir::Cache::archives": folder / "archives", "Dir::Etc::sourcelist": folder / "sources",
        "Dir::Etc::sourceparts": "-", "Dir::Etc::parts": "-", "Dir::Etc::preferencesparts": "-",
        "APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "", "Acquire::Languages": "none", "Debug::NoLocking": "true",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def newest(names: Sequence[str]) -> str | None:
    """Of programs such as clang++-15 the one with the highest version; None of none."""
    return max(names, key=lambda name: int(re.search(r"\d*$", name)[0] or 0), default=None)


def _download_packages(folder: Path) -> list[Path]:
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "sources").write_text(f"deb [arch=arm64 signed-by={KEYRING}] {MIRROR} {SUITE} main\n")
    (folder / "status").write_text("")
    (folder / "apt.conf").write_text("")
    apt = ["apt-get", *apt_options(folder), "-q", "-y"]
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    failed = f"Debian's packages cannot be fetched from {MIRROR}"
    _run([*apt, "update"], failed, environment)
    _run([*apt, "autoclean"], failed, environment)  # versions that an earlier run fetched and Debian has replaced
    _run([*apt, "--download-only", "install", *PACKAGES], failed, environment)
    return sorted((folder / "archives").glob("*.deb"))


def _install_wheels(site: Path) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(site),
          "--python-version", PYTHON, "--implementation", "cp", *platforms, "--only-binary=:all:",
          *_contents()["wheels"]], "Python packages for aarch64 cannot be installed")


def _contents() -> dict[str, list[str]]:
    return {"packages": [MIRROR, SUITE, *PACKAGES], "wheels": [*(f"{n}=={version(n)}" for n in PINNED), *WHEELS]}


def _clang() -> str | None:
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder]
    return shutil.which("clang++") or newest([str(path) for f in folders for path in f.glob("clang++-[0-9]*")])


def _write_wrappers(sysroot: Sysroot) -> None:
    for name in ("bin", "vendors"):
        (sysroot.folder / name).mkdir(exist_ok=True)
    # By its path outside: PoCL looks for its files beside itself with access(), which qemu does not redirect.
    (sysroot.folder / "vendors" / "pocl.icd").write_text(f"{sysroot.root}/usr/lib/aarch64-linux-gnu/libpocl.so.2\n")
    for name, line in _WRAPPERS.items():
        path = sysroot.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{line.format(root=sysroot.root, clang=_clang() or 'clang++')}\n")
        path.chmod(0o755)


def _run(command: list[str], failed: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if re.match(r"\s*(E:|ERROR|.*error)", line)]
        raise UserError(f"{failed}: {' '.join(said or done.stderr.splitlines()[-1:])}; is the network there?")
    return done.stdout
