"""Which files an artifact is run from, and how a server of TVM's own, which only takes whole files, gets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..artifact import CHAT_CONFIG, TOKEN_STREAM, Artifact
from ..jsonfile import read_json
from ..tvm_runtime import load_runtime
from ..weights import INDEX
from .storage import sha256

_OPTIONAL = ("kernels.json", TOKEN_STREAM, "tokenizer.json")
_CPU = 1  # DLPack's
_CHECKED, _HASH = "blockffn.checked", "ffi.StructuralHash"
_NOT_WHOLE = ("Cannot open", "corrupted parameter shard")  # what the server says of files that are not there, or short


def artifact_files(artifact: Artifact) -> list[str]:
    """The files of an artifact that running it takes, relative to its folder."""
    shards = [shard["dataPath"] for shard in read_json(artifact.path / INDEX)["records"]]
    library = artifact.library.relative_to(artifact.path).as_posix()
    return [CHAT_CONFIG, INDEX, library, *shards, *(name for name in _OPTIONAL if (artifact.path / name).is_file())]


class Uploads:
    """Files by their digests in a flat folder: such a server makes none."""

    def __init__(self, session: Any, folder: str) -> None:
        """Raises UserError for a folder that is not absolute: the server reads and writes elsewhere then."""
        if not folder.startswith("/"):
            raise UserError(f"--rpc-folder: expected an absolute path, found {folder!r}")
        self._session, self._folder = session, folder.rstrip("/")

    def send(self, artifact: Artifact, progress: Callable[[str], None]) -> tuple[str, bytes]:
        """What is not there already, or was changed. Returns the library's path there, and the weights' index with the
        names of files there. Raises UserError for a folder that cannot be written and for what arrived as another file,
        which is removed, and what TVM raises when the connection breaks."""
        index = read_json(artifact.path / INDEX)
        names = [artifact.library.relative_to(artifact.path).as_posix(), *(s["dataPath"] for s in index["records"])]
        places = {name: f"{sha256(artifact.path / name)}{(artifact.path / name).suffix}" for name in names}
        missing = {place: name for name, place in places.items() if not self._whole(place, artifact.path / name)}
        if kept := len(set(places.values())) - len(missing):
            progress(f"{artifact.name}: {kept} of {kept + len(missing)} files are there already")
        for place, name in missing.items():
            path = artifact.path / name
            progress(f"send {name}, {path.stat().st_size / 1e6:.1f} MB")
            self._upload(place, path.read_bytes())
            if not self._whole(place, path):
                self._session["tvm.rpc.server.remove"](f"{self._folder}/{place}")
                raise UserError(f"{self._folder}: {name} arrived as another file there and was removed; is the storage "
                                "full? Free some and send it again")
        for shard in index["records"]:
            shard["dataPath"] = places[shard["dataPath"]]
        return f"{self._folder}/{places[names[0]]}", json.dumps(index).encode()

    def _upload(self, place: str, data: bytes) -> None:
        try:
            self._session["tvm.rpc.server.upload"](f"{self._folder}/{place}", data)
        except RuntimeError as error:
            if "Cannot open" in str(error):
                raise UserError(f"{self._folder}: cannot be written there; make this folder, or choose another with "
                                "--rpc-folder") from None
            raise

    def _whole(self, place: str, path: Path) -> bool:
        """Whether the file there has the bytes of the one here, as far as 64 bits tell: such a server knows no SHA-256,
        but reads files as tensors, and hashes those."""
        values = np.fromfile(path, np.uint8)
        record = {"name": _CHECKED, "shape": values.shape, "dtype": "uint8", "format": "raw", "nbytes": values.nbytes,
                  "byteOffset": 0}
        index = {"records": [{"dataPath": place, "format": "raw-shard", "nbytes": values.nbytes, "records": [record]}]}
        self._upload(INDEX, json.dumps(index).encode())
        try:
            self._session["vm.builtin.tensor_cache.load"](self._folder, _CPU, 0)
        except RuntimeError as error:
            if any(words in str(error) for words in _NOT_WHOLE):
                return False
            raise
        tensors = self._session["vm.builtin.param_array_from_cache_by_name_unpacked"](_CHECKED)
        self._session["vm.builtin.tensor_cache.remove"](_CHECKED)
        ffi = load_runtime()
        here = ffi.get_global_func(_HASH)(ffi.Array([ffi.from_dlpack(values)]), False, False)
        return self._session[_HASH](tensors, False, False) == here
