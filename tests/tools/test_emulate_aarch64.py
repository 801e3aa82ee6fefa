"""64-bit ARM under emulation: what is compared and refused; and a run, where the ARM system has been fetched."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockffn_mlc.errors import UserError
from runtime_py.files import cache_folder

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import aarch64_sysroot  # noqa: E402
import emulate_aarch64  # noqa: E402
from aarch64_sysroot import Sysroot  # noqa: E402
from emulate_aarch64 import VARIANTS, agreed, allowed_gap, nmse, top_gap  # noqa: E402

PROMPT, TOKENS, VOCAB = [0, 1, 2], [5, 6, 7, 8], 16
BY_NAME = {variant.name: variant for variant in VARIANTS}


class FakeRuns:
    """Tokens and logits as given; ``drafted`` and ``chunked`` where options ask for drafts and chunks."""

    def __init__(self, tokens, logits, drafted=None, chunked=None):
        self.tokens, self.values = tokens, logits
        self.drafted, self.chunked = drafted or tokens, logits if chunked is None else chunked

    def generate(self, prompt, *options):
        assert list(prompt) == PROMPT
        return self.drafted if "eagle" in options else self.tokens

    def logits(self, ids, *options):
        return self.chunked if "--chunk" in options else self.values


@pytest.fixture
def logits():
    """Rows whose greatest value is what TOKENS say, 1 above the second."""
    values = np.random.default_rng(0).uniform(-1, 1, (len(PROMPT) + len(TOKENS), VOCAB)).astype(np.float32)
    values[np.arange(len(TOKENS)) + len(PROMPT) - 1, TOKENS] = 2
    return values


def compare(host, emulated, name="q0f32"):
    return emulate_aarch64.compare(BY_NAME[name], PROMPT, host, emulated)


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        compare(*arguments, **options)
    return str(caught.value)


def test_equal_runs_agree(logits):
    host = FakeRuns(TOKENS, logits)
    assert compare(host, host) == {"nmse": 0.0, "tokens": 4, "agreed": 4}


def test_logits_beyond_the_bound_are_refused(logits):
    host = FakeRuns(TOKENS, logits)
    for worse in (logits * np.float32(1.0001), np.where(logits == 2, np.float32(np.nan), logits)):
        assert "NMSE of the logits" in refusal(host, FakeRuns(TOKENS, worse))
    assert compare(host, FakeRuns(TOKENS, logits * np.float32(1.0001)), "int8")["nmse"] == pytest.approx(1e-8, rel=0.1)


def test_another_token_needs_a_small_gap(logits):
    other = [5, 6, 1, 2]
    assert "greedy token 2 is [1], here 7" in refusal(FakeRuns(TOKENS, logits), FakeRuns(other, logits))
    row = logits[len(PROMPT) - 1 + 2]
    row[1] = row[7] - allowed_gap(row, BY_NAME["q0f32"].bound) / 2
    assert compare(FakeRuns(TOKENS, logits), FakeRuns(other, logits))["agreed"] == 2


def test_on_the_cpu_neither_drafts_nor_chunks_may_change_anything(logits):
    host, nudged = FakeRuns(TOKENS, logits), np.nextafter(logits, np.float32(9))
    assert "with drafts token 3 is another" in refusal(host, FakeRuns(TOKENS, logits, drafted=[5, 6, 7, 9]))
    assert "other bits" in refusal(host, FakeRuns(TOKENS, logits, chunked=nudged))
    assert compare(host, FakeRuns(TOKENS, logits, chunked=nudged), "android")["agreed"] == 4
    assert "greedy token 3" in refusal(host, FakeRuns(TOKENS, logits, drafted=[5, 6, 7, 9]), name="android")


def test_figures():
    assert agreed([1, 2, 3], [1, 2, 3]) == 3 and agreed([1, 2, 3], [1, 2]) == 2 and agreed([1, 2], [2, 2]) == 0
    assert top_gap(np.array([1, 5, 4.5, -9], np.float32)) == 0.5
    assert nmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx(4 / 17)
    assert np.isnan(nmse(np.array([1.0, np.nan]), np.array([1.0, 4.0])))
    assert allowed_gap(np.full(4, 2, np.float32), 1e-4) == pytest.approx(6 * 0.01 * 2)


def test_variants_have_bounds_and_names_of_their_own():
    assert len(BY_NAME) == len(VARIANTS)
    assert BY_NAME["q0f32"].bound < BY_NAME["int8x2"].bound < BY_NAME["int8"].bound
    assert BY_NAME["android"].bound == BY_NAME["q0f32"].bound


def test_a_variant_that_cannot_be_built_is_a_failure(tmp_path, monkeypatch, capsys):
    broken = replace(BY_NAME["q0f32"], quantization="q9f9")
    monkeypatch.setattr(emulate_aarch64, "VARIANTS", (broken,))
    monkeypatch.setattr(emulate_aarch64, "prepare", lambda folder, note, opencl: Sysroot(folder))
    out = tmp_path / "results.json"
    assert emulate_aarch64.main(["--cache", str(tmp_path), "--json", str(out)]) == 1
    assert "FAILED: building q0f32" in capsys.readouterr().out
    assert "q9f9" in json.loads(out.read_text())["results"][0]["problem"]


def test_missing_programs_are_named_with_their_packages(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs qemu-aarch64, ld.lld; .*apt-get install qemu-user lld$"):
        aarch64_sysroot.check_tools(opencl=False)
    with pytest.raises(UserError, match=r"ninja, clang\+\+; .* ninja-build clang$"):
        aarch64_sysroot.check_tools(opencl=True)
    with pytest.raises(UserError, match="apt-get is missing"):
        aarch64_sysroot.check_preparation()


def test_a_failed_download_says_what_apt_said(monkeypatch, tmp_path):
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Failed to fetch InRelease' >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="cannot be fetched.*E: Failed to fetch InRelease; is the network there"):
        aarch64_sysroot._download_packages(tmp_path / "debs")


def test_apt_keeps_to_the_folder(tmp_path):
    values = dict(option.split("=", 1) for option in aarch64_sysroot.apt_options(tmp_path)[1::2])
    folders = [value for name, value in values.items() if name.startswith("Dir::") and value != "-"]
    assert len(folders) >= 5 and all(Path(value).is_relative_to(tmp_path) for value in folders)
    assert values["APT::Architecture"] == "arm64"


def test_an_incomplete_or_other_system_is_not_ready(tmp_path):
    sysroot = Sysroot(tmp_path)
    assert not sysroot.ready()
    sysroot.root.mkdir()
    stamp = sysroot.root / "ready.json"
    stamp.write_text(json.dumps(aarch64_sysroot._contents()))
    assert sysroot.ready()
    stamp.write_text(json.dumps({**aarch64_sysroot._contents(), "wheels": []}))
    assert not sysroot.ready()


def test_the_newest_clang():
    assert aarch64_sysroot.newest(["/usr/bin/clang++-9", "/usr/bin/clang++-15"]) == "/usr/bin/clang++-15"
    assert aarch64_sysroot.newest([]) is None


def test_byte_dot_products_run_as_on_this_machine(tmp_path):
    """Every kernel of the demo on an emulated Neoverse-N1, whole passes against this machine's."""
    from machine import skip_unless_it_can_run

    skip_unless_it_can_run("int8x2")
    try:
        aarch64_sysroot.check_tools(opencl=False)
        ready = Sysroot(cache_folder() / "aarch64").ready()
    except UserError:
        ready = False
    if not ready:
        pytest.skip("needs qemu-user and 900 MB that no test fetches: python tools/emulate_aarch64.py --prepare does")
    out = tmp_path / "results.json"
    done = subprocess.run([sys.executable, "tools/emulate_aarch64.py", "--only", "int8x2", "--json", str(out)],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(out.read_text())["results"]
    assert result["host"] == "aarch64 neoverse-n1, dotprod" and result["kernels"] > 20
