"""The demo model's data and training: what is held out, what the tokenizer keeps, what an interruption changes."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import demo_data  # noqa: E402
import train_demo  # noqa: E402

from blockffn_mlc.reference import Reference  # noqa: E402

TEXT = "".join(f"Gen{chapter}:{verse} And there was chapter {chapter}, verse {verse}.\n"
               for chapter in range(1, 51) for verse in range(1, 4))
ARGUMENTS = dict(steps=6, dense=False, locality=1e-2, chunk=0.2, chunk_length=16, budget=3.0, token_share=0.2,
                 chunk_share=0.3, idle=0.5, floor=0.03, dropout=0.1, seed=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    train, held_out = demo_data.split(demo_data.chapters(TEXT))
    (tmp_path / "train.txt").write_text("\n\n".join(train))
    (tmp_path / "heldout.txt").write_text("\n\n".join(held_out))
    (tmp_path / "tokenizer.json").write_text(demo_data.train_tokenizer(train).to_str())
    for name, value in dict(FOLDER=tmp_path, BATCH_TOKENS=128, SHORT=32, LONG=64, SPARSE_FROM=1, SPARSE_RAMP=2).items():
        monkeypatch.setattr(train_demo, name, value)
    return tmp_path


def trained(name, interrupt_at=None):
    run = train_demo.Run(argparse.Namespace(output=Path(name), **ARGUMENTS))
    while run.step < ARGUMENTS["steps"]:
        run.train_step()
        if run.step == interrupt_at:
            run.save()
            return trained(name)
    run.log()
    return run


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(folder):
    whole, resumed = trained("whole"), trained("resumed", interrupt_at=3)
    assert whole.history == resumed.history
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


def test_export_holds_the_weights_in_bfloat16_and_the_released_names(folder):
    run = trained("model")
    train_demo.export(run.tensors, folder / "model", run.history)
    model = Reference.load(folder / "model")
    assert model.config == train_demo.CONFIG
    assert set(model.tensors) == set(run.tensors)
    for name, tensor in model.tensors.items():
        assert torch.equal(tensor, run.tensors[name].bfloat16().float()), name


def test_every_twentieth_chapter_is_held_out():
    chapters = demo_data.chapters(TEXT)
    train, held_out = demo_data.split(chapters)
    assert held_out == [chapters[10], chapters[30]]
    assert sorted(train + held_out) == sorted(chapters) and len(chapters) == 50
    assert chapters[10].splitlines()[1] == "And there was chapter 11, verse 2."


@pytest.mark.parametrize("text", ["In the beginning", " two  spaces\n\nand lines\r\n\t", "日本語 🙂 \x00", ""])
def test_the_tokenizer_keeps_any_text(text):
    tokenizer = demo_data.train_tokenizer(["And God said, Let there be light: and there was light."])
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert demo_data.encode(tokenizer, text)[0] == demo_data.BOS
    assert demo_data.encode(tokenizer, text)[-1] == demo_data.EOS
