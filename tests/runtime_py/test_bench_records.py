"""The benchmark's records: figures, every format read back, pictures, comparisons, refusals."""

import base64
import csv
import io
import json
import re
import statistics
from contextlib import contextmanager

import pytest
from bench_records import FACTS, FINISHED, record
from toy import write_artifact

from blockffn_mlc.errors import UserError
from runtime_py.artifact import Artifact
from runtime_py.bench import records as records_module
from runtime_py.bench.compare import FASTER, SAME, SLOWER, UNKNOWN, compare
from runtime_py.bench.measure import Sample, Setup
from runtime_py.bench.plot import plot_records, series
from runtime_py.bench.records import run_tasks
from runtime_py.bench.render import FORMATS, read_records, warnings
from runtime_py.bench.tasks import Task, check_tasks, make_tasks
from runtime_py.cli import main
from runtime_py.drafters.scripted import accuracy_for
from runtime_py.plot import load_pyplot

RECORDS = [record(1.0, 2.0, 4.0), record(2.0, task=Task("tg", 8, 64, "speculative")),
           record(0.5, 0.5, 0.5, task=Task("chunk", 4, 64, "dense"), device="opencl:0", driver="3.1"),
           record(0.25, 0.5, 0.5, task=Task("chunk", 1, 64, "dense"), device="opencl:0", driver="3.1")]
PNG = b"\x89PNG\r\n\x1a\n"


def test_figures_of_a_record():
    one, drafted = RECORDS[:2]
    assert one["seconds"] == [1.0, 2.0, 4.0] and one["test"] == "tg8 @ d64"
    assert one["tokens_per_s"] == pytest.approx(statistics.mean((8, 4, 2)))
    assert one["tokens_per_s_sd"] == pytest.approx(statistics.stdev((8, 4, 2)))
    assert one["ms"] == pytest.approx(7 / 3 / 4 * 1e3)  # of one pass
    assert one["gb_per_s"] == pytest.approx(2**30 / 1e9 * (1 + 1 / 2 + 1 / 4) / 3)
    assert one["gop_per_s"] == pytest.approx(2 * one["gb_per_s"]) and one["weight_bytes_per_pass"] == 2**28
    assert (one["accept_length"], one["draft"]) == (None, None)
    assert (drafted["accept_length"], drafted["draft"], drafted["gop_per_s"]) == (2.0, "eagle", None)
    assert drafted["tokens_per_s_sd"] is None


@pytest.mark.parametrize("name", ["json", "jsonl"])
def test_json_is_read_back(tmp_path, name):
    path = tmp_path / "records"
    path.write_text(FORMATS[name](RECORDS))
    assert read_records(path) == RECORDS


def test_csv_is_read_back():
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](RECORDS))))
    for row, values in zip(rows, RECORDS, strict=True):
        assert set(row) == set(values)
        for name, value in values.items():
            if isinstance(value, list | int | float):
                assert json.loads(row[name]) == value
            else:
                assert row[name] == (value or "")


def test_markdown_is_read_back():
    lines = FORMATS["md"](RECORDS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    for row, values in zip(rows, RECORDS, strict=True):
        assert (row["artifact"], row["device"], row["test"]) == tuple(values[n] for n in ("artifact", "device", "test"))
        speed, *deviation = row["tok/s"].split(" ± ")
        assert float(speed) == pytest.approx(values["tokens_per_s"], rel=1e-3) and int(row["threads"]) == 2
        assert [float(text) for text in deviation] == pytest.approx(
            [values["tokens_per_s_sd"]] if values["tokens_per_s_sd"] is not None else [], rel=1e-3, abs=1e-3)
        assert float(row["ms"]) == pytest.approx(values["ms"], rel=1e-2)
        assert (row["active"], row["union"], row["memory"]) == ("25.0%", "50.0%", "2147 MB")
    assert rows[1]["mode"] == "speculative (eagle)" and rows[1]["accept"] == "2.00" and rows[0]["accept"] == ""
    text = "\n".join(lines)
    assert "driver 3.1" in text and "source abc" in text and "artifact_digest 555555555555," in text


@pytest.mark.parametrize(("facts", "message"), [({"busy_before": 0.4}, "40% of the machine busy"),
                                                ({"weight_bytes": 1 << 20}, "weights of toy take 1 MB")])
def test_doubtful_figures_are_marked(facts, message):
    records = [record(1.0, **facts), record(2.0, **facts)]
    assert len(warnings(records)) == 1 and message in warnings(records)[0] in FORMATS["md"](records)
    assert not warnings(RECORDS) and not warnings([record(1.0, busy_before=None)])
    assert not warnings([record(1.0, device="opencl:0", weight_bytes=1)])


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no record"), ("[]", "holds no record"), ("{", "not readable as JSON"), ("[1]", "record 1: field 'art"),
    ('{"artifact": "x"}', "record 1: field 'device' is missing"),
    (json.dumps([RECORDS[0], RECORDS[0] | {"seconds": [0]}]), r"record 2: field 'seconds': .* found \[0\]"),
    (json.dumps([RECORDS[0] | {"seconds": []}]), "expected a list of positive numbers"),
    (json.dumps([RECORDS[0] | {"tokens": "8"}]), "record 1: field 'tokens': expected an integer")])
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_records(tmp_path / "x.json")


def test_pictures(tmp_path):
    plot_records(tmp_path / "x.png", RECORDS)
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)
    plot_records(tmp_path / "x.html", RECORDS[:1])
    page = (tmp_path / "x.html").read_text()
    assert base64.b64decode(re.search(r'base64,([^"]*)"', page)[1]).startswith(PNG) and "| toy | 1074 MB | cpu" in page


def test_what_pictures_show(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(load_pyplot(), "close", figures.append)
    tasks = [Task("chunk", tokens, 64, "sparse") for tokens in (8, 2)]
    read = [record(0.5, task=tasks[0]), record(0.25, task=tasks[1]) | {"union": 0.25}]
    plot_records(tmp_path / "x.png", [*RECORDS[:2], *read])
    latency, tokens, union, roofline = figures[0].axes
    assert [bar.get_width() for bar in latency.patches] == [1e3 / rec["tokens_per_s"] for rec in RECORDS[:2]]
    assert [label.get_text() for label in latency.get_yticklabels()] == [f"{series(rec)}\n{rec['test']}"
                                                                         for rec in RECORDS[:2]]
    lines = [axes.lines[0].get_xydata().tolist() for axes in (tokens, union, roofline)]
    milliseconds = [read[1]["ms"], read[0]["ms"]]
    assert lines[0] == [[2, milliseconds[0]], [8, milliseconds[1]]]
    assert lines[1] == [[0.25, milliseconds[0]], [0.5, milliseconds[1]]]
    assert lines[2] == [[rec["gop_per_s"] / rec["gb_per_s"], rec["gop_per_s"]] for rec in read]
    roof = roofline.lines[1]
    assert roof.get_label() == "roof of cpu, 2 threads, f32: 20.0 GB/s, 400 GOP/s, ridge at 20"
    assert roof.get_xdata().tolist() == [0.5, 20, 64] and roof.get_ydata().tolist() == [10, 400, 400]


def test_every_roof_is_the_lower_of_memory_and_arithmetic(tmp_path, monkeypatch):
    """One for each device, number of threads and kind of activations, with what is known of it."""
    figures = []
    monkeypatch.setattr(load_pyplot(), "close", figures.append)
    chunk = Task("chunk", 4, 64, "sparse")
    facts = [{"threads": 1, "roof_gb_per_s": 10.0}, {"threads": 2, "roof_gop_per_s": 3200.0},
             {"activations": "int8", "roof_gop_per_s": 1600.0}, {"device": "opencl:0", "roof_gb_per_s": None},
             {"device": "vulkan:0", "roof_gb_per_s": None, "roof_gop_per_s": None},
             {"device": "cuda:0", "roof_gop_per_s": None}]
    plot_records(tmp_path / "x.png", [record(1.0, task=chunk, **fact) for fact in facts])
    found = {line.get_label(): line.get_xydata() for line in figures[0].axes[3].lines if "roof" in line.get_label()}
    known = {"cpu, 1 thread, f32": (10, 400), "cpu, 2 threads, f32": (20, 3200), "cpu, 2 threads, int8": (20, 1600),
             "opencl:0, f32": (float("inf"), 400), "cuda:0, f32": (20, float("inf"))}
    assert [name.partition(": ")[0] for name in found] == [f"roof of {name}" for name in known]
    for (name, points), (memory, arithmetic) in zip(found.items(), known.values()):
        assert points[:, 1].tolist() == [min(memory * place, arithmetic) for place in points[:, 0]], name
        ridge = arithmetic / memory
        assert (f"ridge at {ridge:.0f}" in name) == (0 < ridge < float("inf")) == (ridge in points[:, 0])
        assert points[-1, 0] >= 64 and points[-1, 0] > ridge or ridge == float("inf")


@pytest.fixture
def measured(monkeypatch):
    """What the measuring processes, which are none here, were asked to do."""
    asked = []

    @contextmanager
    def process(setup):
        def call(task, *arguments):
            asked.append((setup, task.__name__, *arguments))
            return {"surroundings": {}, "prepare": dict(FACTS) | {"threads": setup.threads}, "conclude": dict(FINISHED),
                    "measure": Sample(1.0 + len(asked), 1, 1, 1, 0.25, 0.5)}[task.__name__]
        yield call

    monkeypatch.setattr(records_module, "process", process)
    return asked


def test_what_is_compared_takes_turns(artifact_folder, measured):
    """Forwards and backwards; the first round does not count."""
    setups = [Setup(str(artifact_folder), threads) for threads in (1, 2)]
    tasks = [Task("tg", 4, 0, mode) for mode in ("dense", "sparse")]
    records = run_tasks(setups, tasks, 2, lambda text: None)
    steps = [(setup, "measure", task) for task in tasks for setup in setups]
    done = [call for call in measured if call[1] == "measure"]
    assert done == [(*step, turn) for turn, order in enumerate((steps[::-1], steps, steps[::-1])) for step in order]
    times = [[1.0 + i for i, call in enumerate(measured, 1) if call[:3] == step and call[3]] for step in steps]
    assert [record["seconds"] for record in records] == times
    assert [(record["threads"], record["mode"]) for record in records] == [(1, "dense"), (2, "dense"), (1, "sparse"),
                                                                          (2, "sparse")]


def test_artifacts_are_told_apart_and_measured_once(tmp_path, measured, capsys):
    folders = [tmp_path / name / "toy" for name in ("old", "new")]
    for folder in folders:
        folder.parent.mkdir()
        write_artifact(folder)
    command = ["bench", *map(str, folders), f"{folders[0]}/", "-p", "8", "-n", "0", "--chunks", "0", "--depth", "0",
               "-r", "2", "--modes", "sparse", "-o", "json"]
    assert main(command) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["artifact"] for record in records] == [str(folder) for folder in folders]
    assert [len(record["seconds"]) for record in records] == [2, 2]
    assert main([*command[:2], *command[4:]]) == 0
    assert [record["artifact"] for record in json.loads(capsys.readouterr().out)] == ["toy"]


@pytest.mark.parametrize(("before", "after", "verdict"), [
    ((1, 1.1, 1.2), (1.3, 1.25, 1.21), SLOWER), ((1, 1.1, 1.2), (0.9, 0.8, 0.99), FASTER),
    ((1, 1.1, 1.2), (1.15, 1.3, 1.4), SAME), ((1, 1.1, 1.2), (1.2, 1.3, 1.4), SAME), ((1, 1.1), (3, 4, 5), UNKNOWN)])
def test_verdicts(before, after, verdict):
    (found,), notes = compare([record(*before)], [record(*after)])
    assert found.verdict == verdict and notes == []
    assert found.ratio == pytest.approx(statistics.median(8 / s for s in after)
                                        / statistics.median(8 / s for s in before))
    assert (found.low, found.high) == pytest.approx((min(before) / max(after), max(before) / min(after)))


def test_what_is_one_value_in_each_file_is_what_is_compared():
    chunk = Task("chunk", 4, 64, "sparse")
    ours = [record(1, 1, 1, artifact="a"), record(1, 1, 1, artifact="a", task=chunk)]
    others = [record(2, 2, 2, artifact="b", device="opencl:0"), record(1, 1, 1, artifact="b", device="opencl:0",
                                                                     task=Task("pp", 8, 64, "sparse"))]
    (found,), notes = compare(ours, others)
    assert found.key == ("tg8 @ d64",) and found.verdict == SLOWER
    assert notes == ["artifact: a against b", "device: cpu against opencl:0",
                     "only in the first file: chunk4 @ d64", "only in the second file: pp8 @ d64"]
    threads = [record(1, threads=1), record(2, threads=2)]
    assert [found.key for found in compare(threads, threads)[0]] == [("tg8 @ d64", 1), ("tg8 @ d64", 2)]
    with pytest.raises(UserError, match="no test in common.*tg8 @ d64 4"):
        compare(threads, [record(1, threads=4), record(1, threads=8)])
    with pytest.raises(UserError, match="the second file holds tg8 @ d64 twice"):
        compare(ours, [ours[0], ours[0]])


def test_a_regression_is_exit_code_1(tmp_path, capsys):
    files = {}
    for name, seconds in (("a", (1, 1.1, 1.2)), ("b", (2, 2.1, 2.2)), ("c", (0.5, 0.6, 2.2))):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(FORMATS["json"]([record(*seconds)]))
    assert main(["bench", "compare", str(files["a"]), str(files["b"])]) == 1
    out, err = capsys.readouterr()
    assert "| tg8 @ d64 |" in out and "| slower |" in out
    assert err == "error: 1 of 1 tests became slower beyond their spread: tg8 @ d64\n"
    for first, second in ("ba", "ac"):
        assert main(["bench", "compare", str(files[first]), str(files[second]), "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["comparisons"][0]["verdict"] == {"b": FASTER, "a": SAME}[first]


def test_tasks_are_all_combinations():
    tasks = make_tasks((8,), (4, 0), (0, 1), (0, 64), ("dense", "speculative"))
    assert [(task.name, task.mode) for task in tasks] == [
        (f"{name} @ d{depth}", mode) for depth in (0, 64) for name, mode in (
            ("pp8", "dense"), ("tg4", "dense"), ("tg4", "speculative"), ("chunk1", "dense"))]


@pytest.mark.parametrize(("task", "message"), [
    (Task("tg", 32, 64, "sparse"), "tg32 @ d64: takes 97 tokens, the context window has 96; choose a smaller --depth"),
    (Task("pp", 97, 0, "sparse"), "pp97 @ d0: takes 97 tokens"),
    (Task("chunk", 17, 0, "dense"), "chunk17 @ d0: one pass takes at most 16 tokens")])
def test_what_does_not_fit_is_refused(artifact_folder, task, message):
    fits = [Task("tg", 31, 64, "sparse"), Task("pp", 96, 0, "sparse"), Task("chunk", 16, 80, "dense")]
    check_tasks(fits, Artifact.open(artifact_folder))
    with pytest.raises(UserError, match=re.escape(message)):
        check_tasks([*fits, task], Artifact.open(artifact_folder))


@pytest.mark.parametrize(("line", "message"), [
    ("bench x --modes fast", "expected modes out of dense,sparse,speculative"), ("bench x -r 0", "positive integer"),
    ("bench x -n -1", "from 0 up"), ("bench x -p 0 -n 0 --chunks 0", "leave nothing for --modes dense,sparse to time"),
    ("bench x -n 0 --modes sparse,speculative", "speculative times -n alone"),
    ("bench x --tree-size 4", "--tree-size: expected speculative among --modes"),
    ("bench x --modes speculative --draft eagle --accept-length 2", "--accept-length: expected --draft scripted"),
    ("bench x --text y --rpc z:1", "--text: expected no --rpc"), ("bench x --rpc-folder y", "expected --rpc beside it"),
    ("bench x --tokens 1", "--tokens: expected --kernels"), ("bench x --kernels -p 1", "-p: expected no --kernels"),
    ("bench x --kernels --accept-length 2", "--accept-length: expected no --kernels"),
    ("bench x y --kernels", "expected one artifact"), ("bench x --kernels --depth 1,2", "one --depth"),
    ("bench x --kernels -o jsonl", "with --kernels expected md, csv, json"), ("bench compare a", "expected two files"),
    ("bench compare a b -o csv", "-o md or -o json")])
def test_wrong_usage_exits_with_2(line, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and message in err


def test_an_unwritable_picture_is_refused_before_work(artifact_folder, capsys):
    assert main(["bench", str(artifact_folder), "--plot", "x.svg", "-n", "8"]) == 1
    assert "plot format '.svg' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(("length", "levels"), [(1, 3), (2.66, 7), (4, 3), (2.66, 63)])
def test_the_accuracy_brings_the_accept_length(length, levels):
    accuracy = accuracy_for(length, levels)
    assert sum(accuracy**level for level in range(levels + 1)) == pytest.approx(length)
    with pytest.raises(ValueError, match=f"expected 1 to {levels + 1} new tokens"):
        accuracy_for(levels + 1.1, levels)
