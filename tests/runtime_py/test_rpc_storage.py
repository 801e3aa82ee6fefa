"""Where a server keeps what it was sent."""

import hashlib

import pytest

from blockffn_mlc.errors import UserError
from runtime_py.rpc.storage import Storage


def test_what_changed_in_the_storage_is_noticed(tmp_path):
    storage, digest = Storage(tmp_path), hashlib.sha256(b"right").hexdigest()
    storage.append(digest, 0, b"right")
    storage.finish(digest)
    assert (storage.assemble("toy", {"a/b": digest}) / "a" / "b").read_bytes() == b"right"
    with pytest.raises(UserError, match="'c' is missing or damaged"):
        storage.assemble("half", {"b": digest, "c": "0" * 64})
    assert not list(tmp_path.glob("artifacts/*/half"))
    (tmp_path / "blobs" / digest).write_bytes(b"wrong")
    with pytest.raises(UserError, match="'a/b' is missing or damaged"):
        storage.assemble("toy", {"a/b": digest})
    assert storage.held(digest) == 0
    for name, path in (("toy", "../b"), ("..", "b"), ("toy", "/b")):
        with pytest.raises(UserError, match="not a relative path inside"):
            storage.assemble(name, {path: digest})
    for wrong in ("../../x", "5" * 63, "G" * 64):
        with pytest.raises(UserError, match="expected a SHA-256"):
            storage.held(wrong)


def test_a_storage_that_others_can_write_is_refused(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs").chmod(0o777)
    with pytest.raises(UserError, match="blobs: can be written by other users; choose another --storage"):
        Storage(tmp_path)
