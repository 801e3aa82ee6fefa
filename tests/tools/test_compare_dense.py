"""The comparison of sparse and dense passes refuses what the artifact cannot take, and measures both fairly."""

import numpy as np
import pytest

from blockffn_mlc.errors import UserError
from tools import compare_dense


class Library:
    """Counts passes; half of the experts are active."""

    def __init__(self):
        self.passes = []

    def new_caches(self):
        return []

    def forward(self, ids, *_, dense):
        self.passes.append((len(ids), dense))
        return np.zeros((1, 8)), [np.tile([1, 0], (len(ids), 2))]


class Engine:
    """A model of 8 tokens with a window of 40 and chunks of 32."""

    def __init__(self):
        config = type("Config", (), {"vocab_size": 8})
        self.artifact = type("Artifact", (), {"context_window_size": 40, "prefill_chunk_size": 32, "config": config,
                                              "name": "toy", "chat_config": {"blockffn": {"host": "here"}}})
        self.library, self.threads = Library(), 1

    def session(self):
        return type("Session", (), {"checked": lambda _, ids: ids})()

    def encode(self, text):
        return [1] * len(text)


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(compare_dense.Engine, "load", lambda *_: engine)
    return engine


def test_both_kinds_run_equally_often_and_take_turns_going_first(engine, capsys):
    compare_dense.main(["toy", "--tokens", "1,8", "--depth", "16", "--repeat", "4"])
    timed = [dense for count, dense in engine.library.passes if count == 8]
    assert timed[2:] == [False, True, True, False] * 2
    assert "| 8 |" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "message"), [
    (["--tokens", "33", "--depth", "1"], "33 tokens of a pass: this artifact takes at most 32"),
    (["--tokens", "1", "--depth", "33"], "33 tokens cached before"),
    (["--tokens", "16", "--depth", "25"], "41 tokens in all: this artifact takes at most 40"),
    (["--tokens", "8", "--depth", "8", "--text-file", "short.txt"], "the text has 3 tokens, 16 are needed")])
def test_lengths_beyond_artifact_or_text_are_refused_before_any_pass(engine, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(UserError, match=message):
        compare_dense.main(["toy", *options])
    assert engine.library.passes == []


@pytest.mark.parametrize("options", [["--tokens", "0"], ["--tokens", "1,x"], ["--tokens", ""], ["--depth", "0"],
                                     ["--repeat", "0"], ["--threads", "0"]])
def test_impossible_numbers_are_wrong_usage(options):
    with pytest.raises(SystemExit) as caught:
        compare_dense.parse_arguments(["toy", *options])
    assert caught.value.code == 2


def test_a_text_of_exactly_the_needed_length_will_do(engine, tmp_path):
    (tmp_path / "a.txt").write_text("x" * 16)
    compare_dense.main(["toy", "--tokens", "8", "--depth", "8", "--repeat", "1",
                        "--text-file", str(tmp_path / "a.txt")])
    assert len(engine.library.passes) == 6
