"""Times of the feed-forward kernels by the size of the union: which rows are printed."""

import json
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from machine import opencl_device, vulkan_device

from schedules import twins
from schedules.layout import unpack_rows
from tools import ffn_by_union
from tools.ffn_by_union import main

SIZES = ["--experts", "4", "--hidden", "32", "--expert-size", "8", "--rounds", "1", "--format", "float32"]


@pytest.fixture(params=[opencl_device, vulkan_device], ids=["opencl", "vulkan"])
def device(request):
    return request.param()


def test_figures_are_those_of_the_shortest_round(device, monkeypatch, capsys):
    """With a clock that only the layer moves: a union of u experts takes 2 + u ms, and in every other round 4 more; the
    first round, which compiles, a second."""
    clock = SimpleNamespace(now=0.0)

    def call(self, tokens, union):
        rounds = count()

        def run():
            turn = next(rounds)
            clock.now += 1.0 if turn == 0 else (2 + union + turn % 2 * 4) / 1e3
        return run

    monkeypatch.setattr(ffn_by_union.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(ffn_by_union.FeedForward, "call", call)
    assert main([*SIZES, "--device", device.name, "--rounds", "4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["milliseconds"] for row in rows] == pytest.approx([3, 4, 5, 6])
    assert [row["median"] for row in rows] == pytest.approx([5, 6, 7, 8])
    assert [row["of_ideal"] for row in rows] == pytest.approx([3 / 6 * 4, 4 / 6 * 4 / 2, 5 / 6 * 4 / 3, 1])


def test_rows(device, capsys):
    assert main([*SIZES, "--device", device.name, "--tokens", "1", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["tokens"], row["union"]) for row in rows] == [(n, size) for n in (1, 2) for size in (1, 2, 3, 4)]
    assert all(row["median"] >= row["milliseconds"] > 0 for row in rows)
    assert main([*SIZES, "--device", device.name]) == 0
    assert "4 experts" in capsys.readouterr().out


@pytest.mark.parametrize("tokens, union", [(1, 1), (3, 2), (2, 4)])
def test_what_is_timed_is_the_layer(device, tokens, union):
    """The kernels that run read the experts of the union, and no other."""
    ffn = ffn_by_union.FeedForward(device, 4, 32, 8, "float32")
    seen = []

    def watched(kernel):
        def run(*arguments):
            kernel(*arguments)
            seen.append([device.host(argument) for argument in arguments])
        return run

    ffn.up, ffn.down = watched(ffn.up), watched(ffn.down)
    ffn.call(tokens, union)()
    (x, scores, *_), (*_, y) = seen
    assert (scores != 0).any(0).sum() == union and ((scores != 0).sum(1) == union).all()
    up, down = unpack_rows(device.host(ffn.up_weight), 8), unpack_rows(device.host(ffn.down_weight), 32)
    expected = twins.sparse_down(twins.sparse_up(x, scores, up), down, x, 1.0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_processor_is_refused(capsys):
    assert main(["--device", "cpu"]) == 1
    assert "expected opencl, opencl:N, vulkan or vulkan:N" in capsys.readouterr().err
