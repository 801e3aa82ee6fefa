"""tools/compile_llama.py: what it tells the shell; the tests of other engines use what it compiles."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import compile_llama as tool  # noqa: E402


def test_what_is_there_is_not_compiled_again(tmp_path, capsys):
    folder = tmp_path / "a cache" / tool.PACKAGE
    folder.mkdir(parents=True)
    assert tool.main(["--cache", str(folder.parent)]) == 0
    said = subprocess.run(["bash", "-c", capsys.readouterr().out + "echo $PYTHONPATH"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": "other"})
    assert said.stdout == f"{folder}:other\n"


def test_a_failure_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "PACKAGE", "no such package")
    assert tool.main(["--cache", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "pip, cmake, ninja and a C++ compiler" in err and not list(tmp_path.iterdir())
