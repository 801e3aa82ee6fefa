"""The bundled demo model keeps the promises of its model card on the held-out text beside it."""

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import demo_eval  # noqa: E402
from demo_data import read_documents  # noqa: E402

from blockffn_mlc.reference import Reference  # noqa: E402

DEMO = Path(__file__).parents[2] / "blockffn_mlc" / "demo"


@pytest.fixture(scope="module")
def figures():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    return demo_eval.measure(Reference.load(DEMO), tokenizer, read_documents(DEMO / "heldout.txt"))


def test_sparsity_of_tokens_and_of_chunks(figures):
    assert figures["tls"] >= 80
    assert 65 <= figures["cls_8"] <= figures["tls"] - 3
    assert figures["cls_8"] > figures["cls_32"] > figures["cls_64"]


def test_experts_are_used_and_their_number_varies(figures):
    assert figures["experts_active_on_half_a_percent"] >= 95
    assert figures["active_experts_per_token_and_layer"]["standard_deviation"] >= 1


def test_perplexity_is_close_to_training_without_sparsity_losses(figures):
    without = 19.559  # the model card's figure for the same text
    assert figures["perplexity"] <= 1.1 * without


def test_the_folder_is_small_and_complete():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 12e6
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        json.loads((DEMO / name).read_text())
