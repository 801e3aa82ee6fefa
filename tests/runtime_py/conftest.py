"""The runtime's tests need no compiler: a toy artifact on disk, a toy model library in numpy."""

import io

import pytest
from fake_library import FakeLibrary
from spec_questions import QUESTIONS, write
from toy import write_artifact

from runtime_py.cli import main
from runtime_py.cost_table import CostTable
from runtime_py.engine import Engine


@pytest.fixture(autouse=True)
def fixed_costs(monkeypatch):
    """No test depends on this machine's speed or on the user's cache: speculation costs what these figures say."""
    table = CostTable((1, 2, 4, 8, 16, 32, 64), (1.0, 1.05, 1.1, 1.2, 1.4, 1.8, 2.6))
    monkeypatch.setattr("runtime_py.engine.cost_table", lambda *_, **__: table)
    return table


@pytest.fixture
def artifact_folder(tmp_path):
    write_artifact(tmp_path / "toy")
    return tmp_path / "toy"


@pytest.fixture
def fake_library(monkeypatch):
    """Engine.load uses the numpy toy instead of the compiled library."""
    monkeypatch.setattr("runtime_py.engine.Library", FakeLibrary)


@pytest.fixture
def engine(artifact_folder, fake_library):
    return Engine.load(artifact_folder)


@pytest.fixture
def run(artifact_folder, fake_library, capsys, monkeypatch):
    """run(command, *options, stdin=...) -> (exit code, stdout, stderr)."""
    def run(command, *options, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([command, str(artifact_folder), *map(str, options)])
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of a cache that is empty."""
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "question.jsonl", *QUESTIONS)


@pytest.fixture
def specbench(run, questions, tmp_path, monkeypatch):
    """specbench(*options) -> (exit code, stdout, stderr), with answers in ``tmp_path / "answers"``."""
    monkeypatch.setattr("runtime_py.commands.specbench.busy_share", lambda: 0.25)  # looking takes half a second

    def specbench(*options):
        return run("specbench", "--questions", questions, "--answers", tmp_path / "answers", "--max-tokens", 6,
                   *options)
    return specbench
