#!/usr/bin/env python3
"""Fetch Intel's OpenCL driver for x86-64 processors, which computes with float16, and say how to use it.

    eval "$(python tools/intel_opencl.py)"
    python -m runtime_py devices

It is proprietary software under Intel's licence (share/doc/opencl/licensing in its folder), 250 MB to download and 800
MB on disk, and goes into an environment of its own in --cache: nothing is installed on the machine, and no package here
depends on it. Printed is the line for the shell that lets programs find it beside the drivers of the system.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from blockffn_mlc.errors import UserError  # noqa: E402
from runtime_py.files import cache_folder  # noqa: E402

PACKAGES = ("intel-opencl-rt==2026.2.0", "intel-cmplr-lib-rt==2026.2.0")
DRIVER = Path("lib", "libintelocl.so")  # in the environment
SYSTEM_DRIVERS = Path("/etc/OpenCL/vendors")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "intel-opencl", metavar="DIR",
                        help="where the driver is kept (default: %(default)s)")
    folder = parser.parse_args(argv).cache.absolute()
    try:
        drivers = list_drivers(folder, install(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"export OCL_ICD_VENDORS={shlex.quote(str(drivers))}")
    return 0


def install(folder: Path) -> Path:
    """The driver's library in an environment below ``folder``, made now unless it is there. Raises UserError."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise UserError(f"Intel's driver is fetched for Linux on x86-64 alone, this is {platform.system()} on "
                        f"{platform.machine()}")
    environment = folder / PACKAGES[0]
    if not (environment / DRIVER).is_file():
        print(f"fetching {', '.join(PACKAGES)} into {folder}", file=sys.stderr)
        temporary = folder / f".{PACKAGES[0]}.{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _run([sys.executable, "-m", "venv", str(temporary)])
            _run([str(temporary / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                  *PACKAGES])
            shutil.rmtree(environment, ignore_errors=True)
            os.replace(temporary, environment)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --cache") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return environment / DRIVER


def list_drivers(folder: Path, driver: Path) -> Path:
    """A folder for OpenCL's loader: one file for ``driver``, and copies of the system's."""
    vendors = folder / "vendors"
    shutil.rmtree(vendors, ignore_errors=True)
    vendors.mkdir()
    for system in SYSTEM_DRIVERS.glob("*.icd"):
        shutil.copy(system, vendors)
    (vendors / "intel-processor.icd").write_text(f"{driver}\n")
    return vendors


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise UserError(f"Intel's driver cannot be installed: {' '.join(errors)}; is the network there?")


if __name__ == "__main__":
    sys.exit(main())
