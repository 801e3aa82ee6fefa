"""Cost tables: what they say between the measured points, how they are kept, what is chosen by them."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py import cost_measurement
from runtime_py.controller import Controller
from runtime_py.cost_measurement import cache_key, cost_table
from runtime_py.cost_table import NODES, CostTable
from runtime_py.drafters.ngram import NgramDrafter
from runtime_py.engine import Engine
from runtime_py.files import cache_folder
from runtime_py.speculation import FixedShape
from runtime_py.tree import TreeShape

TABLE = CostTable((1, 2, 8), (1.0, 1.5, 3.0), (0.25, 0.5))


@pytest.mark.parametrize(("shape", "seconds"), [((1, 0), 1.0), ((2, 1), 1.75), ((5, 2), 2.75), ((8, 2), 3.5),
                                                ((8, 4), 4.0)])
def test_seconds_for(shape, seconds):
    """Lines between the points; levels beyond the deepest cost what the others cost on average."""
    assert TABLE.seconds_for(TreeShape(*shape, 10)) == pytest.approx(seconds)


def test_beyond_the_table():
    with pytest.raises(ValueError, match="ends at 8 nodes"):
        TABLE.seconds_for(TreeShape(9, 1, 1))


@given(st.lists(st.floats(1e-6, 1e3), min_size=8, max_size=8))
def test_between_two_points_lies_a_time_between_theirs(seconds):
    table = CostTable(NODES, tuple(seconds))
    for i, (first, last) in enumerate(zip(NODES, NODES[1:])):
        low, high = sorted(seconds[i:i + 2])
        assert all(low * (1 - 1e-9) <= table.by_nodes[n] <= high * (1 + 1e-9) for n in range(first, last + 1))
    assert CostTable.from_dict(json.loads(json.dumps(asdict(table)))) == table


@pytest.mark.parametrize("change", [
    {"nodes": [1, 2]}, {"nodes": [2, 3, 8]}, {"nodes": [1, 8, 2]}, {"nodes": [1, 2, 65]}, {"seconds": [1.0, 2.0, 0.0]},
    {"seconds": [1.0, float("nan"), 2.0]}, {"draft_seconds": [-1.0]}, {"draft_seconds": None},
    {"seconds": ["x", 1, 2]}])
def test_bad_tables_are_refused(change):
    with pytest.raises(ValueError):
        CostTable.from_dict(asdict(TABLE) | change)


@pytest.mark.parametrize("values", [None, [], 3, {}])
def test_other_values_are_refused(values):
    with pytest.raises(ValueError):
        CostTable.from_dict(values)


def test_auto_is_lookup_where_the_draft_model_could_not_pay(engine, monkeypatch):
    class Model(NgramDrafter):
        name, by_level = "eagle", True

    monkeypatch.setattr("runtime_py.engine.make_drafter", lambda draft, *_: NgramDrafter() if draft == "ngram"
                        else Model())
    tables = {"eagle": CostTable((1, 2, 4), (1.0, 1.2, 1.4), (3.0,)), "ngram": CostTable((1, 2, 4), (1.0, 1.2, 1.4))}
    monkeypatch.setattr("runtime_py.engine.cost_table", lambda engine, drafter, *_, **__: tables[drafter.name])
    assert engine.drafting("auto")[0].name == "ngram" and engine.drafting("eagle")[0].name == "eagle"
    assert engine.drafting("auto", 4)[0].name == "eagle"
    tables["eagle"] = replace(tables["eagle"], draft_seconds=(0.1,))
    engine._costs.clear()
    assert engine.drafting("auto")[0].name == "eagle"


def test_where_nothing_can_pay_nothing_is_drafted(engine, monkeypatch):
    monkeypatch.setattr("runtime_py.engine.cost_table", lambda *_, **__: CostTable((1, 2, 4), (1.0, 2.0, 4.0)))
    assert engine.controller(NgramDrafter()).choose(8).size == 1
    monkeypatch.setattr("runtime_py.engine.cost_table", lambda *_, **__: CostTable((1, 2, 4), (1.0, 1.1, 1.2)))
    engine._costs.clear()
    assert engine.controller(NgramDrafter()).choose(8).size == 4


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements, by drafter."""
    found = []
    monkeypatch.setattr(cost_measurement, "measure_costs",
                        lambda engine, drafter, dense: found.append(drafter.name) or (TABLE, True))
    return found


def test_kept_on_disk(engine, cache, measured):
    lines = []
    assert cost_table(engine, NgramDrafter(), lines.append) == cost_table(engine, NgramDrafter(), lines.append) == TABLE
    assert measured == ["ngram"] and len(lines) == 1 and str(cache) in lines[0]
    (entry,) = (cache / "costs").iterdir()
    assert entry.suffix == ".json" and CostTable.from_dict(json.loads(entry.read_text())["costs"]) == TABLE


def test_whatever_the_table_depends_on_asks_for_another(engine, cache, measured, monkeypatch):
    cost_table(engine, NgramDrafter())
    other = NgramDrafter()
    other.name = "other"
    cost_table(engine, other)
    engine.threads += 1
    cost_table(engine, NgramDrafter())
    keys = [cache_key(engine, "ngram")]
    for path in (engine.artifact.library, engine.artifact.path / "tensor-cache.json"):
        path.write_bytes(path.read_bytes() + b" ")
        keys.append(cache_key(engine, "ngram"))
        cost_table(engine, NgramDrafter())
    keys.append(cache_key(engine, "ngram", dense=True))
    device = engine.device
    monkeypatch.setattr(engine, "device", SimpleNamespace(name=device.name, product="another", here=True))
    keys.append(cache_key(engine, "ngram"))
    monkeypatch.setattr(engine, "device", device)
    for name in ("processor", "installed_version"):
        monkeypatch.setattr(cost_measurement, name, lambda: "another")
        keys.append(cache_key(engine, "ngram"))
        cost_table(engine, NgramDrafter())
    assert len(measured) == 7 and len(list((cache / "costs").iterdir())) == 7
    assert len({json.dumps(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("damage", [
    lambda text: b"", lambda text: text[:len(text) // 2], lambda text: b"\xff\x00", lambda text: b"null",
    lambda text: text.replace(b"1.5", b"-1.5"), lambda text: text.replace(b"ngram", b"eagle"),
    lambda text: b"[" * 100_000])
def test_a_damaged_or_foreign_entry_is_measured_again(engine, cache, measured, damage):
    cost_table(engine, NgramDrafter())
    (entry,) = (cache / "costs").iterdir()
    good = entry.read_bytes()
    assert damage(good) != good
    entry.write_bytes(damage(good))
    assert cost_table(engine, NgramDrafter()) == TABLE
    assert len(measured) == 2 and entry.read_bytes() == good


def test_an_entry_that_is_a_folder_or_a_cache_that_is_a_file_costs_a_measurement(engine, cache, measured):
    cost_table(engine, NgramDrafter())
    (entry,) = (cache / "costs").iterdir()
    entry.unlink()
    entry.mkdir()
    assert cost_table(engine, NgramDrafter()) == TABLE
    entry.rmdir()
    (cache / "costs").rmdir()
    cache.rmdir()
    cache.write_text("not a folder")
    assert cost_table(engine, NgramDrafter()) == TABLE and len(measured) == 3


def test_a_user_without_a_home(engine, measured, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cost_measurement, "cache_folder", no_home)
    assert cost_table(engine, NgramDrafter()) == TABLE and measured == ["ngram"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BLOCKFFN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "blockffn-mlc"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert cache_folder() == tmp_path / ".cache" / "blockffn-mlc"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "blockffn-mlc"
    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path / "ours"))
    assert cache_folder() == tmp_path / "ours"


def test_an_engine_looks_it_up_once_and_only_when_it_chooses_itself(engine, monkeypatch):
    asked = []
    monkeypatch.setattr("runtime_py.engine.cost_table", lambda *_, **__: asked.append(1) or TABLE)
    assert isinstance(engine.controller(NgramDrafter(), 4), FixedShape)
    assert isinstance(engine.controller(None), FixedShape) and not asked
    controllers = [engine.controller(NgramDrafter()) for _ in range(2)]
    assert all(isinstance(controller, Controller) for controller in controllers) and len(asked) == 1


def test_generation_with_a_broken_cache(artifact_folder, fake_library, cache, monkeypatch):
    """The whole way: measured for real, nothing kept, the same text as without drafts."""
    cache.write_text("not a folder")
    monkeypatch.setattr("runtime_py.engine.cost_table", cost_table)
    monkeypatch.setattr(cost_measurement, "_SECONDS", 0.0)
    engine = Engine.load(artifact_folder)
    texts = [[token.id for token in engine.generate([1, 2, 3], 20, draft=draft)] for draft in ("ngram", "none")]
    assert texts[0] == texts[1]
