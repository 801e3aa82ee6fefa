"""Compiled OpenCL programs on disk: drivers take long to compile, and every process would do it again."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from blockffn_mlc.errors import UserError

from ..files import cache_folder, replacing

_DIGEST_BYTES = 32


def register_program_cache(tvm_ffi: ModuleType) -> None:
    """Let the C++ runtime ask for binaries and hand them in. A key is what a binary depends on: platform, device,
    driver, source."""
    tvm_ffi.register_global_func("blockffn.opencl.load_binary", load_binary, override=True)
    tvm_ffi.register_global_func("blockffn.opencl.store_binary", store_binary, override=True)


def load_binary(key: bytes) -> bytes | None:
    """The binary stored for ``key``; None when there is none, or it is damaged."""
    try:
        entry = _path(key).read_bytes()
    except (OSError, RuntimeError):  # none, or a user without a home
        return None
    digest, binary = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
    return binary if hashlib.sha256(binary).digest() == digest else None


def store_binary(key: bytes, binary: bytes) -> None:
    """Keep ``binary`` for ``key``. A folder that cannot be written costs the next process a compilation."""
    with suppress(OSError, RuntimeError, UserError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(hashlib.sha256(binary).digest() + binary)


def _path(key: bytes) -> Path:
    return cache_folder() / "opencl" / f"{hashlib.sha256(key).hexdigest()[:32]}.bin"
