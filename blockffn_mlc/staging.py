"""The folder a build works in: beside the artifact, locked, and renamed to it in one step at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .chat_config import FILE as CHAT_CONFIG
from .errors import UserError
from .shards import Journal

ONNX_MODEL, ONNX_PRODUCER = "model.onnx", "blockffn-mlc"  # the file of ``--emit onnx``, and what it names as its maker
_LOCK = ".lock"
_REPLACED = ".replaced"  # inside the folder, the earlier artifact while it is being replaced


def check_destination(out: Path) -> None:
    """Refuse to replace anything but an artifact of ours. Raises UserError."""
    out = Path(os.path.abspath(out))
    if out.is_symlink() or (out.exists() and not out.is_dir()) or out.is_mount():
        raise UserError(f"-o {out}: exists and is not an ordinary folder; choose another name")
    if out.is_dir() and any(out.iterdir()) and not _is_artifact(out):
        raise UserError(f"-o {out}: folder is not empty and holds no artifact of build.py; "
                        "choose another name or remove it")
    staging = _staging_path(out)
    if staging.is_dir() and any(staging.iterdir()) and not (staging / _LOCK).exists():
        raise UserError(f"{staging}: needed for the build of {out.name}, but holds something else; "
                        "move it away or choose another -o")


@contextlib.contextmanager
def staging_folder(out: Path, identity: str) -> Iterator[tuple[Path, Journal]]:
    """A folder to build ``out`` in, holding at most the finished shards of an interrupted build with the same
    ``identity``, and their journal. On success it becomes ``out``. After an error or interruption it stays only
    if it holds finished shards. Raises UserError when another build of ``out`` is running."""
    check_destination(out)
    staging = _staging_path(out)
    with _locked(staging, out):
        if not out.exists() and (staging / _REPLACED).is_dir():
            os.replace(staging / _REPLACED, out)  # an earlier build stopped between the two renames
        journal = Journal(staging, identity)
        _keep_only(staging, {_LOCK, Journal.FILE, *journal.finished})
        try:
            yield staging, journal
            _put_in_place(staging, out)
        except BaseException:
            if staging.is_dir() and not journal.finished and not any(staging.glob("params_shard_*.bin")):
                shutil.rmtree(staging, ignore_errors=True)
            raise


def _staging_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _is_artifact(folder: Path) -> bool:
    try:
        if (folder / ONNX_MODEL).is_file():
            with open(folder / ONNX_MODEL, "rb") as model:
                return ONNX_PRODUCER.encode() in model.read(64)  # the second field of the file
        return "blockffn" in json.loads((folder / CHAT_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


@contextlib.contextmanager
def _locked(staging: Path, out: Path) -> Iterator[None]:
    while True:
        staging.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            lock = open(staging / _LOCK, "w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise UserError(f"-o {out}: another build is writing it; wait for it or choose another name") from None
            # The build that held the lock may have renamed the folder meanwhile.
            if os.fstat(lock.fileno()).st_ino == os.stat(staging / _LOCK).st_ino:
                break
            lock.close()
    with lock:
        yield


def _keep_only(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _put_in_place(staging: Path, out: Path) -> None:
    if out.exists():
        os.replace(out, staging / _REPLACED)
    os.replace(staging, out)
    for name in (Journal.FILE, _LOCK):
        (out / name).unlink()
    shutil.rmtree(out / _REPLACED, ignore_errors=True)
