"""Models with compiled EAGLE drafts, built once per process, and passes of their drafts."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from checkpoints import MLA, write_random_checkpoint, write_random_draft
from compiled import GOLDEN

from blockffn_mlc.builder import build_artifact, make_plan
from blockffn_mlc.progress import Progress
from blockffn_mlc.sources import open_model, with_draft
from runtime_py import Engine
from targets.cpu import cpu_target

TARGET, DRAFT = GOLDEN / "gqa_block_linear", GOLDEN / "eagle_gqa"
WINDOW, CHUNK = 160, 24
_folders = []  # temporary folders, deleted when the process ends


def _folder():
    _folders.append(tempfile.TemporaryDirectory(prefix="blockffn-test-"))
    return Path(_folders[-1].name)


def _build(model, draft, quantization):
    """An artifact with float32 activations and few token tiles, which compile fast and change no result."""
    target = cpu_target()
    target = replace(target, tiles=replace(target.tiles, q4_token_tiles=(1, 4)))
    source = with_draft(open_model(str(model)), draft)
    plan = make_plan(source.config, target, quantization, WINDOW, CHUNK, source.folder, "f32", source.draft)
    out = _folder() / "artifact"
    build_artifact(plan, source.weights, source.folder, source.identity, out, 1, Progress(quiet=True))
    return Engine.load(out)


@cache
def gqa_engine():
    """The golden draft and its target, in float32."""
    return _build(TARGET, DRAFT, "q0f32")


@cache
def mla_checkpoint():
    """A folder of a target with MLA and untied embeddings, ``model``, and of a ``draft`` of two layers that rotates
    wider heads and knows all tokens."""
    folder = _folder()
    write_random_checkpoint(folder / "model", MLA)
    write_random_draft(folder / "draft", MLA, layers=2, bias=False)
    return folder


@cache
def mla_engine(quantization):
    """``mla_checkpoint``, built."""
    return _build(mla_checkpoint() / "model", mla_checkpoint() / "draft", quantization)


def causal(library, ids, hidden, caches, start=0):
    """One draft pass over pairs at positions from ``start`` on, with the head for all of them."""
    rows = np.arange(len(ids), dtype=np.int32)
    return library.draft(np.array(ids, np.int32), hidden, start + rows, start + rows + 1,
                         np.zeros((len(ids), 2), np.int32), rows, start, 0, caches)
