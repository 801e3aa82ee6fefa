"""Finding the weights files of a checkpoint folder, whole or sharded with an index."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UserError
from .names import HARMLESS_SUFFIXES
from .safetensors_file import SafetensorsFile
from .tensor_file import TensorFile
from .torch_file import TorchFile

# In the order in which Hugging Face's loader looks for them.
_WEIGHTS = (("model.safetensors", SafetensorsFile), ("pytorch_model.bin", TorchFile))


def locate_tensors(folder: Path) -> dict[str, TensorFile]:
    """Stored tensor name -> the opened file that holds it. Constants that no model needs are left out.

    Raises UserError for a folder without weights, a damaged file or index, an index that leaves the folder.
    """
    for name, kind in _WEIGHTS:
        if (folder / name).exists():
            file = kind(folder / name)
            return {tensor: file for tensor in file.shapes if not tensor.endswith(HARMLESS_SUFFIXES)}
        if (folder / f"{name}.index.json").exists():
            return _locate_sharded(folder / f"{name}.index.json", kind)
    names = " or ".join(f"{name}[.index.json]" for name, _ in _WEIGHTS)
    raise UserError(f"{folder}: no weights found; expected {names}")


def _locate_sharded(index: Path, kind: type[SafetensorsFile | TorchFile]) -> dict[str, TensorFile]:
    weight_map = _read_weight_map(index)
    for tensor, shard in weight_map.items():
        if not (index.parent / shard).is_file():
            raise UserError(f"{index}: tensor {tensor!r}: expected file {shard!r} in the same folder, found none; "
                            "download the missing file")
    shards = {shard: kind(index.parent / shard) for shard in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].shapes:
            raise UserError(f"{index}: tensor {tensor!r}: expected in {shard}, found no such tensor there")
    for shard, file in shards.items():
        for tensor in file.shapes:
            if weight_map.get(tensor) != shard and not tensor.endswith(HARMLESS_SUFFIXES):
                raise UserError(f"{file.path}: tensor {tensor!r}: expected to be listed for this file in "
                                f"{index.name}, found {weight_map.get(tensor, 'no entry')!r}")
    return {tensor: shards[shard] for tensor, shard in weight_map.items() if not tensor.endswith(HARMLESS_SUFFIXES)}


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{index}: not readable as JSON ({error}); download the checkpoint again") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: field 'weight_map': expected an object of tensor name to file name, "
                        f"found {weight_map!r}")
    for tensor, shard in weight_map.items():
        # A plain name cannot lead out of the folder; symbolic links are how download caches store files.
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & set("/\\\0"):
            raise UserError(f"{index}: tensor {tensor!r}: expected the name of a file in the same folder, "
                            f"found {shard!r}")
    return weight_map
