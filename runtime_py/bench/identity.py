"""What a figure belongs to: the build of the artifact, the device with its driver and clock, the versions."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from ..artifact import Artifact
from ..devices import Device
from ..devices import device_facts as listed_facts
from ..tvm_runtime import installed_version
from .machine import nvidia_driver, processor

_ROOT = Path(__file__).resolve().parents[2]
_DRIVER = 12  # of TVM's DeviceAttrKind


def artifact_facts(artifact: Artifact) -> dict[str, Any]:
    """What was built, and by what."""
    ours = artifact.chat_config["blockffn"]
    return {"artifact": artifact.name, "artifact_digest": artifact.digest, "target": artifact.target,
            "host": artifact.host, "quantization": artifact.chat_config.get("quantization"),
            "activations": ours.get("activations"), "built_by_tvm": artifact.tvm_version,
            "weight_bytes": sum(weight.nbytes for weight in artifact.weights.values())}


def device_facts(device: Device) -> dict[str, Any]:
    """What computes. ``clock_mhz``: of a processor now, of other devices the most. Of another machine's device what it
    says itself."""
    here = device.here
    return {"device": device.name, "device_name": device.product, "driver": _driver(device),
            "clock_mhz": device.clock_mhz, "processor": processor() if here else None,
            "system": platform.platform() if here else None, "tvm": installed_version() if here else None,
            "source": source_revision()}


def _driver(device: Device) -> str | None:
    if not device.here:
        return device.attribute(_DRIVER)
    if device.kind == "cuda":
        return nvidia_driver()
    return listed_facts(device.name).get("driver") if device.copies else None


def source_revision() -> str | None:
    """The commit of this source with "-dirty" behind it where files differ; None outside of a git checkout."""
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=12", "--dirty"],
                              capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    inside = (_ROOT / ".git").exists()
    return done.stdout.strip() if inside and done.returncode == 0 else None
