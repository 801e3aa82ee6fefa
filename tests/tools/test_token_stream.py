"""A synthetic model from the command line to its sparsity and speculative speed, and what cannot be measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import MLA

import build
from blockffn_mlc import config
from blockffn_mlc.random_model import random_checkpoint
from runtime_py.engine import Engine
from runtime_py.tree import TreeShape
from tools import break_even, stream_sparsity

TINY = replace(MLA, hidden_size=256, num_hidden_layers=4, num_experts=56, vocab_size=1024,
               max_position_embeddings=1088)


@pytest.fixture(scope="module", params=["q0f16", "q4f16_1"])
def artifact(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.PRESETS, "tiny", TINY)
        assert build.main(["--model", "tiny@random", "--quantization", request.param, "-o", str(out), "-q"]) == 0
        stream = random_checkpoint("tiny").token_stream
    assert json.loads((out / "token_stream.json").read_text()) == stream.tolist()
    return out


def test_stream_and_trees_are_as_sparse_as_the_paper_says(artifact, capsys):
    active, unions = stream_sparsity.measure(Engine.load(artifact), 1024, 32)
    assert active.shape == (4, 1024, 56) and unions.shape == (16, 4)
    tls = 1 - active.mean(axis=(1, 2))
    cls = 1 - active.reshape(4, 128, 8, 56).any(axis=2).mean(axis=(1, 2))
    assert 0.80 < tls.mean() < 0.82 and 0.70 < cls.mean() < 0.73
    assert abs(tls - tls.mean()).max() < 0.05 and abs(cls - cls.mean()).max() < 0.05
    reuse = (active[:, 1:] & active[:, :-1]).sum() / active[:, 1:].sum()
    assert reuse > 0.8
    assert 0.25 < unions.mean() < 0.45
    row = stream_sparsity.table_row("dist/tiny", active, unions)
    assert row.startswith(f"| tiny | {tls.mean():.1%} (") and f"| {unions.mean():.1%} (" in row


def test_the_union_of_a_tree_counts_its_nodes(artifact):
    """A tree of one node has no siblings: its union is that token's active experts."""
    _, unions = stream_sparsity.measure(Engine.load(artifact), 256, 1)
    assert 0.1 < unions.mean() < 0.26


@pytest.mark.parametrize("content, tokens, found", [(None, 64, "none"), (list(range(3, 80)), 64, "77")])
def test_a_missing_or_short_stream_is_refused(artifact, content, tokens, found, capsys, monkeypatch):
    stream = None if content is None else np.array(content, np.int32)
    monkeypatch.setattr(stream_sparsity.Engine, "load", lambda *_: type("Engine", (), {
        "artifact": type("Artifact", (), {"token_stream": stream, "path": artifact})}))
    assert stream_sparsity.main([str(artifact), "--tokens", str(tokens)]) == 1
    error = capsys.readouterr().err
    assert f"at least 80 tokens, found {found}" in error and error.count("\n") == 1


def test_break_even(artifact, tmp_path):
    """All levels right: every pass brings as many tokens as its tree has levels, and one."""
    result = break_even.measure(Engine.load(artifact), [TreeShape(4, 2, 10)], [0.0, 1.0], tokens=12, rounds=1)
    plain, dense, wrong, right = result["runs"]
    assert (plain["nodes"], plain["accept_length"], plain["dense"]) == (1, 1.0, False) and plain["speed"] == 1.0
    assert dense["dense"] and dense["accept_length"] == dense["speed_over_dense"] == 1.0 and dense["speed"] != 1.0
    assert right["speed_over_dense"] == pytest.approx(right["speed"] / dense["speed"])
    assert wrong["accept_length"] == 1.0 and right["accept_length"] == 3.0
    assert 0 < right["union_share"] < 1 and result["plain_ms"] > 0
    header, _, *rows = break_even.table(result).splitlines()[2:]
    assert header.count("|") == rows[0].count("|") and rows[0].startswith("| 4 | 2 |") and "3.00: " in rows[0]
    break_even.plot(tmp_path / "speed.png", result)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_break_even_needs_a_stream(artifact, capsys):
    assert break_even.main([str(artifact), "--tokens", "100000"]) == 1
    assert "token stream and a window of 100096 tokens" in capsys.readouterr().err
