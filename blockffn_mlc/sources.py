"""What ``--model`` may name: the bundled demo, a folder, a hub repository, a named shape at random; and its draft."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import shards
from .builder import source_identity
from .checkpoint import open_checkpoint
from .checkpoint.draft import Draft, WithDraft, open_draft
from .config import BlockFFNConfig
from .errors import UserError
from .hub import resolve_model
from .random_model import RECIPE_VERSION, random_checkpoint

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo"
DEMO_DRAFT = DEMO_FOLDER / "draft"


@dataclass(frozen=True)
class ModelSource:
    """A model to build: ``name`` for folders and files, the weights, and the ``folder`` with the tokenizer
    (None for synthetic weights). ``identity`` changes when the content does. ``token_stream`` int32 [n]
    is the text that synthetic weights were made for. ``draft``: a draft model whose tensors ``weights`` has too."""

    name: str
    config: BlockFFNConfig
    weights: shards.Source
    folder: Path | None
    identity: str
    token_stream: np.ndarray | None = None
    draft: Draft | None = None


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


def with_draft(model: ModelSource, folder: Path, vocabulary: int | None = None) -> ModelSource:
    """``model`` and the EAGLE draft in ``folder``, with the first ``vocabulary`` ids of its frequency list (None: all).
    Raises UserError; see ``checkpoint.draft``."""
    checkpoint = open_draft(folder, model.config, vocabulary)
    return replace(model, weights=WithDraft(model.weights, checkpoint), draft=checkpoint.draft,
                   identity=f"{model.identity} {source_identity(folder)} {vocabulary}")
