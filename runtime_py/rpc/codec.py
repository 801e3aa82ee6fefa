"""What goes over the wire beside files: JSON, with the dataclasses of measurements."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from ..bench.accounting import Sample
from ..bench.measure import Setup
from ..bench.tasks import Task

_TYPES = {kind.__name__: kind for kind in (Sample, Setup, Task)}
_TYPE = "$type"


def encode(value: Any) -> str:
    """JSON of numbers, texts, lists, objects and the dataclasses above."""
    return json.dumps(value, default=_to_object)


def decode(text: str) -> Any:
    """The other way round; tuples have become lists."""
    return json.loads(text, object_hook=_from_object)


def _to_object(value: Any) -> dict[str, Any]:
    if is_dataclass(value) and type(value).__name__ in _TYPES:
        return {_TYPE: type(value).__name__, **asdict(value)}
    raise TypeError(f"{type(value).__name__} does not go over the wire")


def _from_object(values: dict[str, Any]) -> Any:
    kind = values.pop(_TYPE, None)
    return values if kind is None else _TYPES[kind](**values)
