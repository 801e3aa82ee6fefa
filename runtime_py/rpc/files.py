"""Which files an artifact is run from, and how a server of TVM's own, which only takes whole files, gets them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from blockffn_mlc.errors import UserError

from ..artifact import CHAT_CONFIG, TOKEN_STREAM, Artifact
from ..jsonfile import read_json
from ..weights import INDEX

_OPTIONAL = ("kernels.json", TOKEN_STREAM, "tokenizer.json")


def artifact_files(artifact: Artifact) -> list[str]:
    """The files of an artifact that running it takes, relative to its folder."""
    shards = [shard["dataPath"] for shard in read_json(artifact.path / INDEX)["records"]]
    library = artifact.library.relative_to(artifact.path).as_posix()
    return [CHAT_CONFIG, INDEX, library, *shards, *(name for name in _OPTIONAL if (artifact.path / name).is_file())]


class Uploads:
    """Files by their digests in a flat folder: such a server makes none. Behind a file that was sent and read back
    unchanged comes another, ``*.whole``, by which it is known the next time."""

    def __init__(self, session: Any, folder: str) -> None:
        self._upload, self._download = (session[f"tvm.rpc.server.{name}"] for name in ("upload", "download"))
        self._folder = folder.rstrip("/")

    def send(self, artifact: Artifact, progress: Callable[[str], None]) -> tuple[str, bytes]:
        """What is not there already. Returns the library's path there, and the weights' index with the names of files
        there. Raises UserError for what arrived as another, and RuntimeError when the connection breaks or the folder
        cannot be written."""
        index = read_json(artifact.path / INDEX)
        names = [artifact.library.relative_to(artifact.path).as_posix(), *(s["dataPath"] for s in index["records"])]
        places = {}
        for name in names:
            data = (artifact.path / name).read_bytes()
            places[name] = f"{hashlib.sha256(data).hexdigest()}{(artifact.path / name).suffix}"
            path = f"{self._folder}/{places[name]}"
            if not self._whole(path):
                progress(f"send {name}, {len(data) / 1e6:.1f} MB")
                self._upload(path, data)
                if bytes(self._download(path)) != data:
                    raise UserError(f"{name}: arrived as another file; send it again")
                self._upload(f"{path}.whole", b"1")
        for shard in index["records"]:
            shard["dataPath"] = places[shard["dataPath"]]
        return f"{self._folder}/{places[names[0]]}", json.dumps(index).encode()

    def _whole(self, path: str) -> bool:
        try:
            return bytes(self._download(f"{path}.whole")) == b"1"
        except RuntimeError as error:
            if "Cannot open" in str(error):
                return False
            raise
