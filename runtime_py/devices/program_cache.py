"""Compiled kernels on disk: drivers take long to compile, and every process would do it again."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from blockffn_mlc.errors import UserError

from ..files import cache_folder, not_private, replacing

_DIGEST_BYTES = 32
KEPT_BYTES = 256 << 20  # of a kind of devices; a model's kernels take 2 to 10 MB


class ProgramCache:
    """Binaries that devices of ``kind`` made of kernels. A key is what a binary depends on: device, driver, source."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def register(self, tvm_ffi: ModuleType) -> None:
        """Let the C++ runtime ask for binaries and hand them in."""
        tvm_ffi.register_global_func(f"blockffn.{self._kind}.load_binary", self.load, override=True)
        tvm_ffi.register_global_func(f"blockffn.{self._kind}.store_binary", self.store, override=True)

    def load(self, key: bytes) -> bytes | None:
        """The binary stored for ``key``; None when there is none, it is damaged, or others may write where it is."""
        try:
            path = self.path(key)
            if not_private(path.parent):
                return None
            entry = path.read_bytes()
            os.utime(path)  # used now: the files that were not for longest are removed first
        except (OSError, RuntimeError):  # none, or a user without a home
            return None
        digest, binary = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
        return binary if hashlib.sha256(binary).digest() == digest else None

    def store(self, key: bytes, binary: bytes) -> None:
        """Keep ``binary`` for ``key``. A folder that cannot be written costs the next process a compilation."""
        with suppress(OSError, RuntimeError, UserError):
            path = self.path(key)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(hashlib.sha256(binary).digest() + binary)
            _shrink(path.parent)

    def path(self, key: bytes) -> Path:
        """Where the binary of ``key`` is kept. Raises RuntimeError for a user without a home."""
        return cache_folder() / self._kind / f"{hashlib.sha256(key).hexdigest()[:32]}.bin"


def _shrink(folder: Path) -> None:
    """Remove what was not used for longest until the folder holds at most KEPT_BYTES. Other processes may do the same
    at the same time."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in found) - KEPT_BYTES
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
