"""What ``--model`` may name: the bundled demo, a folder, a hub repository, a named shape at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import shards
from .builder import source_identity
from .checkpoint import open_checkpoint
from .config import BlockFFNConfig
from .errors import UserError
from .hub import resolve_model
from .random_model import RECIPE_VERSION, random_checkpoint

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class ModelSource:
    """A model to build: ``name`` for folders and files, the weights, and the ``folder`` with the tokenizer
    (None for synthetic weights). ``identity`` changes when the content does. ``token_stream`` int32 [n]
    is the text that synthetic weights were made for."""

    name: str
    config: BlockFFNConfig
    weights: shards.Source
    folder: Path | None
    identity: str
    token_stream: np.ndarray | None = None


def open_model(spec: str) -> ModelSource:
    """Resolve ``--model``. Raises UserError; see ``hub`` and ``checkpoint``."""
    if spec.endswith("@random"):
        random = random_checkpoint(spec)
        return ModelSource(spec.replace("@", "-"), random.config, random, None, f"{spec} {RECIPE_VERSION}",
                           random.token_stream)
    folder = DEMO_FOLDER if spec == DEMO else resolve_model(spec)
    if not folder.is_dir():
        raise UserError(f"--model {spec}: no such folder; expected a checkpoint folder, 'demo', HF://org/repo or "
                        "a named shape such as xlarge@random")
    checkpoint = open_checkpoint(folder)
    repository = spec.partition("://")[2].partition("@")[0]
    name = repository.rpartition("/")[2] or folder.resolve().name
    return ModelSource(name, checkpoint.config, checkpoint, folder, source_identity(folder))
