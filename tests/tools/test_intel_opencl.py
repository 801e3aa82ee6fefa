"""The driver for float16: what is printed, and what is refused. No test fetches it."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from tools import intel_opencl
from tools.intel_opencl import DRIVER, PACKAGES, main


@pytest.fixture(autouse=True)
def system(tmp_path, monkeypatch):
    """A machine that Intel's driver runs on, with another driver."""
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "other.icd").write_text("libother.so\n")
    monkeypatch.setattr(intel_opencl, "SYSTEM_DRIVERS", tmp_path / "system")
    monkeypatch.setattr(intel_opencl.platform, "system", lambda: "Linux")
    monkeypatch.setattr(intel_opencl.platform, "machine", lambda: "x86_64")


@pytest.fixture
def ran(monkeypatch):
    """Commands; the first makes an environment, the second installs into it."""
    commands = []

    def run(command, **_):
        commands.append(command)
        library = os.path.join(command[-1] if "venv" in command else os.path.dirname(os.path.dirname(command[0])),
                               DRIVER)
        os.makedirs(os.path.dirname(library), exist_ok=True)
        if "install" in command:
            open(library, "w").close()
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_both_drivers_are_listed_and_fetched_once(ran, tmp_path, capsys):
    folder = tmp_path / "my cache"
    for _ in range(2):
        assert main(["--cache", str(folder)]) == 0
        assert capsys.readouterr().out == f"export OCL_ICD_VENDORS='{folder}/vendors'\n"
    assert len(ran) == 2 and ran[1][-2:] == list(PACKAGES)
    assert sorted(path.name for path in folder.iterdir()) == [PACKAGES[0], "vendors"]
    found = {path.name: path.read_text() for path in (folder / "vendors").iterdir()}
    assert found == {"other.icd": "libother.so\n", "intel-processor.icd": f"{folder / PACKAGES[0] / DRIVER}\n"}


def test_a_failed_installation_gets_one_sentence_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: SimpleNamespace(
        returncode=1, stderr="WARNING: slow\nERROR: No matching distribution found\n", stdout=""))
    assert main(["--cache", str(tmp_path / "cache")]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == (
        "error: Intel's driver cannot be installed: ERROR: No matching distribution found; is the network there?")
    assert not captured.out and not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_written_is_named(ran, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--cache", str(tmp_path / "file" / "cache")]) == 1
    assert "file/cache: cannot be written (Not a directory); choose another --cache" in capsys.readouterr().err


def test_other_machines_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(intel_opencl.platform, "machine", lambda: "aarch64")
    assert main(["--cache", str(tmp_path)]) == 1
    assert "for Linux on x86-64 alone, this is Linux on aarch64" in capsys.readouterr().err
