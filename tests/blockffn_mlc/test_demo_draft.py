"""The bundled draft of the demo model is small, loads, and keeps the promise of its model card."""

import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import draft_eval  # noqa: E402
from continuation import continued  # noqa: E402

from blockffn_mlc.eagle_reference import EagleReference  # noqa: E402
from blockffn_mlc.reference import Reference  # noqa: E402

DEMO = Path(__file__).parents[2] / "blockffn_mlc" / "demo"


@pytest.fixture(scope="module")
def draft():
    return EagleReference.load(DEMO / "draft", Reference.load(DEMO))


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in (DEMO / "draft").iterdir()) <= 4e6


def test_the_most_frequent_tokens_are_named_most_frequent_first(draft):
    """As held-out text counts them: the list covers most of it, its first quarter nearly what any 192 tokens could."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokens = tokenizer.encode((DEMO / "heldout.txt").read_text(encoding="utf-8")).ids
    counts = torch.bincount(torch.tensor(tokens), minlength=2048)
    assert len(set(draft.frequent.tolist())) == len(draft.frequent) == 768
    assert counts[draft.frequent].sum() >= 0.85 * len(tokens)
    assert counts[draft.frequent[:192]].sum() >= 0.95 * counts.topk(192).values.sum()


def test_accept_length_of_trees_with_eight_nodes(draft):
    texts = draft_eval.held_out(DEMO)[::9]
    greedy = continued(draft.target, torch.stack([ids[:draft_eval.PROMPT] for ids in texts]), 96, temperature=0)
    assert draft_eval.mean_accept_length(draft, greedy, size=8, depth=4) >= 2.2
    assert draft_eval.mean_accept_length(draft, texts, size=8, depth=4) >= 1.6
