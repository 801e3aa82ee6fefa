"""The demo draft's training and measurement: interruptions, rollouts, exported files, trees."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import continuation  # noqa: E402
import demo_data  # noqa: E402
import draft_eval  # noqa: E402
import train_draft  # noqa: E402

from blockffn_mlc.eagle_reference import EagleReference  # noqa: E402
from blockffn_mlc.reference import Reference  # noqa: E402

DEMO = Path(__file__).parents[2] / "blockffn_mlc" / "demo"
ARGUMENTS = dict(steps=4, inner=32, frequent=128, levels=3, regression=1.0, seed=0)


@pytest.fixture(scope="module")
def target():
    return Reference.load(DEMO)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    documents = demo_data.read_documents(DEMO / "heldout.txt")
    (tmp_path / "train.txt").write_text("\n\n".join(documents[:2]))
    (tmp_path / "tokenizer.json").write_text((DEMO / "tokenizer.json").read_text())
    for name, value in dict(FOLDER=tmp_path, TARGET=DEMO, BATCH_TOKENS=128, SHORT=32, LONG=64).items():
        monkeypatch.setattr(train_draft, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as main does; more are no help with so little to do
    yield tmp_path
    torch.set_num_threads(threads)


def trained(name, interrupt_at=None):
    run = train_draft.Run(argparse.Namespace(output=Path(name), **ARGUMENTS))
    while run.step < ARGUMENTS["steps"]:
        run.train_step()
        if run.step == interrupt_at:
            run.save()
            return trained(name)
    return run


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(folder):
    whole, resumed = trained("whole"), trained("resumed", interrupt_at=2)
    assert whole.recent_means() == resumed.recent_means()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


def test_export_holds_the_weights_in_bfloat16_and_the_most_frequent_tokens(folder):
    run = trained("draft")
    train_draft.export(run.draft, folder / "draft")
    draft = EagleReference.load(folder / "draft", run.draft.target)
    assert draft.config == run.draft.config
    assert set(draft.tensors) == set(run.tensors)
    for name, tensor in draft.tensors.items():
        assert torch.equal(tensor, run.tensors[name].bfloat16().float()), name
    counts = torch.bincount(run.stream, minlength=2048)
    named = json.loads((folder / "draft" / "freq_128.json").read_text())
    assert len(set(named)) == 128 and torch.equal(counts[named], counts.sort(descending=True).values[:128])


def test_a_row_of_a_rollout_is_what_a_drafted_chain_computes(folder):
    draft = trained("draft").draft
    with torch.no_grad():
        compare_rollout_with_chain(draft)


def compare_rollout_with_chain(draft):
    ids, hidden = torch.randint(2048, (1, 12)), torch.randn(1, 12, 256)
    levels = train_draft.rollout(draft, ids, hidden, 3)
    start = 7
    drafted, cache = draft.forward(ids[:, :start], hidden[:, :start])
    for level in range(3):
        torch.testing.assert_close(drafted[:, -1], levels[level][:, start + level - 1])
        row = start + level
        drafted, cache = draft.forward(ids[:, row:row + 1], drafted[:, -1:], torch.tensor([row]), cache,
                                       torch.ones(1, row + 1, dtype=torch.bool))


def test_continuing_with_a_cache_is_greedy_decoding(target):
    prompts = torch.randint(3, 2048, (2, 5), generator=torch.Generator().manual_seed(1))
    for ids in continuation.continued(target, prompts, 8, temperature=0):
        logits = target.forward(ids[None]).logits[0]
        assert torch.equal(logits[4:-1].argmax(-1), ids[5:])


class Perfect:
    """A draft that knows which token follows each token."""

    def __init__(self, target, following):
        self.target, self.following, self.frequent = target, following, torch.arange(2048)

    def forward(self, ids, hidden, positions=None, past=None, mask=None):
        return self.following[ids], [(torch.zeros(1, 1, ids.shape[1], 1),) * 2]

    def logits(self, drafted):
        return 100.0 * torch.nn.functional.one_hot(drafted, 2048)


def test_a_perfect_draft_is_accepted_to_its_full_depth(target):
    following = (torch.arange(2048) + 1) % 2048
    sequence = torch.arange(100, 100 + draft_eval.PROMPT + 1 + 20)
    assert draft_eval.mean_accept_length(Perfect(target, following), [sequence], size=8, depth=4) == 5
    assert draft_eval.mean_accept_length(Perfect(target, following), [sequence], size=3, depth=4) == pytest.approx(
        20 / 7, abs=1e-3)
    assert draft_eval.mean_accept_length(Perfect(target, following + 1), [sequence], size=8, depth=4) == 1
