"""The PyTorch draft equals an independent transcription of the released engine's arithmetic."""

import numpy as np
import pytest
import torch
from compiled import GOLDEN, nmse

from blockffn_mlc.eagle_reference import EagleReference
from blockffn_mlc.reference import Reference


@pytest.fixture(scope="module")
def golden():
    draft = EagleReference.load(GOLDEN / "eagle_gqa", Reference.load(GOLDEN / "gqa_block_linear"))
    expected = dict(np.load(GOLDEN / "eagle_gqa" / "expected.npz"))
    ids, hidden = torch.from_numpy(expected["ids"])[:, 1:], torch.from_numpy(expected["target_hidden"])[None, :-1]
    return draft, ids, hidden, expected


@torch.no_grad()
def test_matches_the_released_arithmetic(golden):
    draft, ids, hidden, expected = golden
    drafted, _ = draft.forward(ids, hidden)
    assert nmse(drafted[0], expected["draft_hidden"]) <= 1e-10
    assert nmse(draft.logits(drafted)[0], expected["draft_logits"]) <= 1e-10
    assert np.array_equal(draft.frequent, expected["freq"])


@torch.no_grad()
def test_rows_on_a_cache_equal_one_pass(golden):
    """Row by row, with a stranger in between that nobody after it sees."""
    draft, ids, hidden, expected = golden
    rows = ids.shape[1]
    order = [*range(20), 3, *range(20, rows)]
    positions = torch.tensor(order)
    mask = torch.ones(rows + 1, rows + 1, dtype=torch.bool).tril()
    mask[21:, 20] = False
    drafted, cache = draft.forward(ids[:, order[:20]], hidden[:, order[:20]], positions[:20], None, mask[:20, :20])
    results = [drafted[0]]
    for row in range(20, rows + 1):
        new = order[row:row + 1]
        drafted, cache = draft.forward(ids[:, new], hidden[:, new], positions[row:row + 1], cache,
                                       mask[row:row + 1, :row + 1])
        results.append(drafted[0])
    results = torch.cat(results)
    assert nmse(torch.cat([results[:20], results[21:]]), expected["draft_hidden"]) <= 1e-10


@torch.no_grad()
def test_without_a_list_every_token_can_be_drafted(golden):
    draft, ids, hidden, _ = golden
    whole = EagleReference(draft.config, draft.tensors, draft.target)
    drafted, _ = whole.forward(ids, hidden)
    torch.testing.assert_close(whole.logits(drafted)[..., draft.frequent], draft.logits(drafted))
    assert whole.logits(drafted).shape[-1] == draft.target.config.vocab_size
