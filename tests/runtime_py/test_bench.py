"""The benchmark's parts that need no compiled library: descriptions, forced unions, reports, the command line."""

import csv
import io
import json

import numpy as np
import pytest

from blockffn_mlc.errors import UserError
from runtime_py.bench import machine
from runtime_py.bench.bandwidth import ReadBandwidth
from runtime_py.bench.calls import Description, Tensor
from runtime_py.bench.kernels import ALL_EXPERTS, _forced, _sparse_dense
from runtime_py.bench.report import to_csv, to_json, to_markdown, warnings
from runtime_py.bench.rounds import Report
from runtime_py.bench.routing import scores_with_union
from runtime_py.bench.work import Routing
from runtime_py.bench.worker import DENSE, SPARSE, Case, KernelSample, Sample
from runtime_py.cli import main

FACTS = {"artifact": "toy", "host": "here", "quantization": "q0f32", "weight_bytes": 1 << 30, "text": "random tokens",
         "cached_tokens": 64, "rounds": 3,
         "machine": "a processor", "device": "cpu", "processors": 2, "busy_before": 0.0}
DESCRIBED = '{"origins": {}, "elements": {}, "factories": %s}'


def test_extents_are_integer_arithmetic():
    tensor = Tensor((4, "(n + 7) // 8 * 8", "m", "n % 3 - 1"), "float32")
    assert tensor.extents({"n": 9, "m": 2}) == (4, 16, 2, -1)
    assert tensor.depends_on("m") and not Tensor((4, "n"), "float32").depends_on("m")
    for text in ("k", "n ** 2", "__import__('os')", "n.real"):
        with pytest.raises(ValueError, match="extent"):
            Tensor((text,), "float32").extents({"n": 1, "m": 1})


@pytest.mark.parametrize(("text", "message"), [
    (None, "no such file; it describes the kernels"),
    ("[]", "expected a JSON object"),
    ("{}", "'origins' is missing"),
    ('{"origins": {}, "elements": {}, "passes": {}}', "not a description .*'factories'.*rebuild"),
    (DESCRIBED % '{}, "passes": {"forward": {"arguments": {}, "values": {}}}', "not a description .*'calls'"),
    (DESCRIBED % '{"linear": {}}, "passes": {}', "not a description .*'name'"),
    (DESCRIBED % '{"linear": []}, "passes": {}', "not a description")])
def test_a_bad_description_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Description.load(tmp_path)


@pytest.mark.parametrize(("tokens", "users"), [(1, 1), (4, 1), (8, 2), (32, 6)])
@pytest.mark.parametrize("share", [0, 0.1, 0.6, 1])
def test_forced_unions(tokens, users, share):
    scores = scores_with_union(np.random.default_rng(0), tokens, 56, share)
    used = scores != 0
    assert scores.shape == (tokens, 56) and scores.dtype == np.float32
    assert used.any(axis=0).sum() == round(share * 56)
    assert set(used.sum(axis=0)) <= {0, users}
    assert Routing.of(scores, dense=False) == Routing(round(share * 56), round(share * 56) * users)
    assert Routing.of(scores, dense=True) == Routing(56, 56 * tokens)


def passes(*seconds, union=1.0, active=0.5):
    """One sample per round: an expert kernel that takes ``seconds``, another one that takes 1."""
    return [Sample({"up": KernelSample(1, s, 10, 10, True), "down": KernelSample(1, 1.0, 10, 10, True),
                    "norm": KernelSample(1, 9.0)}, None, active, union) for s in seconds]


def test_ratios_compare_within_a_round():
    samples = {(1, Case(4)): passes(1, 2, 6, union=0.5, active=0.25), (1, Case(4, DENSE)): passes(2, 8, 12)}
    up, down, both = _sparse_dense(samples)
    assert (up["kernel"], up["sparse_dense"], up["sparse_dense_min"], up["sparse_dense_max"]) == ("up", 0.5, 0.25, 0.5)
    assert (up["over_active"], up["over_union"]) == (2.0, 1.0)
    assert (down["kernel"], down["sparse_dense"]) == ("down", 1.0)
    assert (both["kernel"], both["sparse_dense"]) == (ALL_EXPERTS, 7 / 13)


def test_forced_unions_are_held_against_the_whole_one():
    samples = {(1, Case(4, SPARSE, share)): passes(*times, union=share)
               for share, times in {0.0: (1, 1, 1), 0.5: (2, 3, 4), 1.0: (4, 4, 4)}.items()}
    rows = {(row["union"], row["kernel"]): row for row in _forced(samples)}
    assert rows[0.0, "up"]["over_union"] is None and rows[0.0, "up"]["ratio"] == 0.25
    assert rows[0.5, "up"]["ratio"] == 0.75 and rows[0.5, "up"]["over_union"] == 1.5
    assert rows[1.0, ALL_EXPERTS]["ratio"] == 1.0


@pytest.fixture
def report():
    return Report(dict(FACTS), {
        "bandwidth": [{"threads": 1, "gb_per_s": 20.0, "gb_per_s_min": 19.0, "gb_per_s_max": 21.0}],
        "kernels": [{"threads": 1, "tokens": 4, "kernel": "up", "of_bandwidth": 0.5, "gop_per_s": None,
                     "origin": "schedules.cpu.up"}]})


def test_formats(report):
    markdown = to_markdown(report)
    assert "| 1 | 20.0 (19.0-21.0) |" in markdown and "| 1 | 4 | up | 50.0% |  |" in markdown
    values = json.loads(to_json(report))
    assert values["kernels"] == report.tables["kernels"] and values["artifact"] == "toy" and values["warnings"] == []
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [row["table"] for row in rows] == ["bandwidth", "kernels"]
    assert rows[0]["gb_per_s_max"] == "21.0" and rows[1]["kernel"] == "up" and rows[1]["gop_per_s"] == ""


@pytest.mark.parametrize(("fact", "value", "message"), [("busy_before", 0.4, "40% of the machine busy"),
                                                        ("weight_bytes", 1 << 20, "stay in the processor's caches")])
def test_doubtful_figures_are_marked(report, fact, value, message):
    report.facts[fact] = value
    assert any(message in text for text in warnings(report.facts)) and message in to_markdown(report)


def test_an_unknown_load_is_no_warning(report):
    report.facts["busy_before"] = None
    assert not warnings(report.facts)


def test_the_machine_is_known_and_memory_is_read():
    assert machine.processor() and 0 <= machine.busy_share() <= 1
    assert ReadBandwidth(2).measure() > 0


@pytest.mark.parametrize(("line", "message"), [
    ("bench x --union 0.5", "expected --kernels"),
    ("bench x --kernels --union 0,1.5", "a share from 0 to 1, found '1.5'"),
    ("bench x --kernels --threads 0", "positive integer"), ("bench x --kernels --tokens 1,,2", "integer, found ''"),
    ("bench x --kernels -o xml", "invalid choice")])
def test_wrong_usage_exits_with_2(line, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and message in err


@pytest.mark.parametrize(("options", "message"), [
    (["--tokens", "1", "--depth", "4"], "not a usable model library"),
    (["--tokens", "4000"], "--tokens: 4000 tokens, this artifact takes at most"),
    (["--tokens", "1", "--depth", "4000"], "--depth and --tokens together")])
def test_what_cannot_be_measured_is_one_sentence(artifact_folder, capsys, options, message):
    """The sentence comes from the measuring process."""
    assert main(["bench", str(artifact_folder), "--kernels", "--threads", "1", *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")
