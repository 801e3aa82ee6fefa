"""The check of a graphics card, with this processor in its place."""

import json
from pathlib import Path

import pytest

from tools import check_gpu


@pytest.fixture
def answers(monkeypatch):
    """What commands answer, by a word of theirs: a result, or None for a failure; and the commands that ran."""
    commands = []

    def run(command):
        commands.append(command)
        word = next((word for word in answers if word in command), None)
        result = answers.get(word, {})
        return {"ok": result is not None, "seconds": 0.1, "command": command,
                **({"error": "it broke"} if result is None else {"result": result})}

    answers = {}
    monkeypatch.setattr(check_gpu, "run", run)
    return answers, commands


def report(tmp_path, *options):
    path = tmp_path / "report.json"
    code = check_gpu.main(["--device", "cpu", "--formats", "q4f16_1", "-o", str(path), *options])
    return code, json.loads(path.read_text())


def test_the_report_has_every_step(answers, tmp_path, capsys):
    said, commands = answers
    said |= {"generate": {"ids": [5, 6, 7]}}
    code, found = report(tmp_path, "--tokens", "3")
    assert code == 0 and found["ok"] and found["device"] == "cpu" and found["tvm"] and found["facts"]["name"]
    steps = found["formats"]["q4f16_1"]
    assert list(steps) == ["build cpu", "verify", "processor", "draft none", "draft ngram", "draft eagle", "bench"]
    assert all(steps[f"draft {draft}"]["tokens_as_processor"] == 3 for draft in check_gpu.DRAFTS)
    assert commands[0][:5] == ["build.py", "--target", "cpu", "--quantization", "q4f16_1"] and "f32" in commands[0]
    assert capsys.readouterr().out.strip().endswith("report.json")


def test_what_fails_is_noted_and_what_needs_it_left_out(answers, tmp_path):
    said, commands = answers
    said |= {"build.py": None}
    code, found = report(tmp_path)
    steps = found["formats"]["q4f16_1"]
    assert code == 1 and not found["ok"] and len(commands) == 1
    assert steps["build cpu"]["error"] == "it broke"
    assert steps["verify"]["error"] == "needs build cpu, which failed"


def test_tokens_are_counted_up_to_the_first_that_differs(answers, tmp_path):
    said, _ = answers
    said |= {"eagle": {"ids": [5, 6, 8]}, "generate": {"ids": [5, 6, 7]}}
    steps = report(tmp_path, "--skip-bench")[1]["formats"]["q4f16_1"]
    assert steps["draft eagle"]["tokens_as_processor"] == 2 and steps["draft ngram"]["tokens_as_processor"] == 3
    assert "bench" not in steps


def test_what_kernels_take_is_in_the_report(answers, tmp_path, monkeypatch):
    """For a target that is not the device's kind, too."""
    _, commands = answers
    ran = check_gpu.run

    def run(command):
        if "cuda:mma" in command:
            library = Path(command[command.index("-o") + 1]) / "lib"
            library.mkdir(parents=True)
            (library / "library.json").write_text('{"compiler": "a compiler"}')
        return ran(command)

    monkeypatch.setattr(check_gpu, "run", run)
    steps = report(tmp_path, "--skip-bench", "--target", "cuda:mma")[1]["formats"]["q4f16_1"]
    assert steps["build cuda:mma"]["kernels"] == {"compiler": "a compiler"} and "kernels" not in steps["build cpu"]
    artifact = commands[0][commands[0].index("-o") + 1]
    assert artifact.endswith("q4f16_1-cuda-mma") and ["verify", artifact] == commands[2][2:4]


def test_commands_are_run():
    step = check_gpu.run(["-m", "runtime_py", "devices", "--json"])
    assert step["ok"] and step["result"]["devices"][0]["device"] == "cpu" and step["seconds"] > 0
    step = check_gpu.run(["-m", "runtime_py", "verify", "nowhere", "--json"])
    assert not step["ok"] and step["error"].startswith("error: nowhere: no such folder")


def test_the_architecture_is_the_devices():
    assert check_gpu.architecture("cuda", {"version": "9.0"}) == ["--arch", "sm_90"]
    assert check_gpu.architecture("cuda:mma", {"version": "8.7"}) == ["--arch", "sm_87"]
    assert check_gpu.architecture("metal", {"version": "9.0"}) == check_gpu.architecture("cuda", {}) == []


def test_a_device_that_is_not_there_is_one_sentence(tmp_path, capsys):
    assert check_gpu.main(["--device", "toaster", "-o", str(tmp_path / "x.json")]) == 1
    assert capsys.readouterr().err.startswith("error: device 'toaster'") and not list(tmp_path.iterdir())
