"""Files that a server was sent, by their contents: each is sent once, and never seen before it is whole and right."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from blockffn_mlc.errors import UserError

from ..files import not_private
from ..jsonfile import path_inside

_DIGEST_LENGTH = 64
_READ_BYTES = 1 << 20


class Storage:
    """``blobs/SHA256`` is a file, ``blobs/SHA256.partial`` its beginning; ``artifacts/*/NAME`` are folders of links."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, for this user alone, where there is none. Raises UserError when others can write there:
        libraries are loaded from it."""
        self._blobs, self._artifacts = folder / "blobs", folder / "artifacts"
        for path in (self._blobs, self._artifacts):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if problem := not_private(path):
                raise UserError(f"{path}: {problem}; choose another --storage")

    def held(self, digest: str) -> int:
        """Bytes of the file that are here; -1: all of it."""
        if self._blob(digest).is_file():
            return -1
        partial = self._partial(digest)
        return partial.stat().st_size if partial.is_file() else 0

    def append(self, digest: str, offset: int, data: bytes) -> None:
        """Go on with a file that ``offset`` bytes of are here. Raises UserError when it is another number, and
        where there is no room."""
        held = self.held(digest)
        if held != offset:
            raise UserError(f"file {digest[:12]}: expected to go on at byte {held}, found {offset}; send it again")
        try:
            with self._partial(digest).open("ab") as file:
                file.write(data)
        except OSError as error:
            raise UserError(f"{self._blobs}: cannot be written there ({error.strerror}); make room, or start the "
                            "server with another --storage") from None

    def finish(self, digest: str) -> None:
        """Check a file that was sent whole. Raises UserError, and forgets it, when it is another."""
        partial = self._partial(digest)
        partial.touch()  # an empty file is sent in no piece
        found = sha256(partial)
        if found != digest:
            partial.unlink()
            raise UserError(f"file {digest[:12]}: arrived as another (SHA-256 {found[:12]}) and was removed; "
                            "send it again")
        os.replace(partial, self._blob(digest))

    def assemble(self, name: str, files: Mapping[str, str]) -> Path:
        """A folder ``name`` with ``files``, path -> digest, all of which are here. Raises UserError for one that is
        not, was changed since, or has a path outside."""
        identity = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        parent = self._artifacts / identity
        folder = path_inside(parent, name, "artifact")
        places = {path_inside(folder, path, name): self._blob(digest) for path, digest in files.items()}
        for path, digest in files.items():
            blob = self._blob(digest)
            if not blob.is_file() or sha256(blob) != digest:
                blob.unlink(missing_ok=True)
                raise UserError(f"{name}: file {path!r} is missing or damaged in the server's storage; send it again")
        for place, blob in places.items():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not place.exists():
                place.unlink(missing_ok=True)  # a link to a file that was removed
                place.symlink_to(blob.resolve())
        return folder

    def _blob(self, digest: str) -> Path:
        if len(digest) != _DIGEST_LENGTH or not set(digest) <= set("0123456789abcdef"):
            raise UserError(f"expected a SHA-256 in hexadecimal, found {digest!r:.80}")
        return self._blobs / digest

    def _partial(self, digest: str) -> Path:
        blob = self._blob(digest)
        return blob.with_name(f"{blob.name}.partial")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
