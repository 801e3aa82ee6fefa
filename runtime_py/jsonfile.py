"""Reading the JSON files of an artifact: every complaint names the file and the field."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from blockffn_mlc.errors import UserError

_KINDS = {int: "an integer", str: "a string", dict: "an object", list: "a list"}


def read_json(path: Path) -> dict[str, Any]:
    """Parse one JSON object. Raises UserError when the file is missing, unreadable or another value."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected an artifact folder written by build.py") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); rebuild the artifact with build.py") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def required(values: dict[str, Any], name: str, kind: type, where: str | Path) -> Any:
    """``values[name]``, checked to be of ``kind`` (a bool is no int)."""
    if name not in values:
        raise UserError(f"{where}: field {name!r} is missing; expected {_KINDS[kind]}")
    value = values[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: field {name!r}: expected {_KINDS[kind]}, found {value!r:.80}")
    return value


def positive(values: dict[str, Any], name: str, where: str | Path) -> int:
    """A field that must be a positive integer."""
    value = required(values, name, int, where)
    if value <= 0:
        raise UserError(f"{where}: field {name!r}: expected a positive integer, found {value}")
    return value


def int_list(values: dict[str, Any], name: str, where: str | Path) -> list[int]:
    """A field that must be a list of non-negative integers (shapes, token ids)."""
    items = required(values, name, list, where)
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
        raise UserError(f"{where}: field {name!r}: expected a list of non-negative integers, found {items!r:.80}")
    return items


def path_inside(folder: Path, name: str, where: str | Path) -> Path:
    """``folder / name`` for a file name read from an artifact; a name that leaves the folder is refused.

    Symbolic links are followed: model hubs store the files of a folder as links.
    """
    parts = PurePosixPath(name)
    if not parts.name or parts.is_absolute() or ".." in parts.parts or any(c in name for c in "\\:\0"):
        raise UserError(f"{where}: file name {name!r:.80} is not a relative path inside the artifact folder")
    return folder / parts
