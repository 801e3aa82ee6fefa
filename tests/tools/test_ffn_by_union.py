"""Times of the feed-forward kernels by the size of the union: which rows are printed."""

import json

import pytest
from machine import opencl_device

from tools.ffn_by_union import main

SIZES = ["--experts", "4", "--hidden", "32", "--expert-size", "8", "--rounds", "1", "--format", "float32"]


@pytest.fixture(autouse=True)
def device():
    return opencl_device()


def test_rows(device, capsys):
    assert main([*SIZES, "--device", device.name, "--tokens", "1", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["tokens"], row["union"]) for row in rows] == [(n, size) for n in (1, 2) for size in (1, 2, 3, 4)]
    assert all(row["median"] >= row["milliseconds"] > 0 for row in rows)
    assert rows[3]["of_ideal"] == rows[7]["of_ideal"] == 1
    assert main([*SIZES, "--device", device.name]) == 0
    assert "4 experts" in capsys.readouterr().out


def test_the_processor_is_refused(capsys):
    assert main(["--device", "cpu"]) == 1
    assert "expected opencl" in capsys.readouterr().err
