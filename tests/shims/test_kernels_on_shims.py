"""Every kernel for CUDA and Metal, in TVM's text for these, against its twin."""

import pytest
from checkpoints import MLA
from gpu_kernels import kernels
from shim_kernels import library

from runtime_py.selftest.checks import TOKENS, check_kernel
from runtime_py.selftest.subject import Subject
from schedules import gpu
from schedules.tiles import GPU_TILES

MATRICES = {"linear", "sparse_up", "sparse_down", "latent_query", "router", "attention"}  # what reads them


def check(kind, built):
    """Every kernel against its twin; the names of their factories."""
    engine, problems = library(kind, built.values()), {}
    for seed, (key, one) in enumerate(built.items()):
        subject = Subject(one.factory.arguments, one.factory.weights, one.weights, seed)
        result = check_kernel(one.name, one.factory, subject, engine, TOKENS)
        if result.problem:
            problems[key] = result.problem
    assert not problems
    return {one.factory.name for one in built.values()}


@pytest.mark.parametrize("kind", ["cuda", "metal"])
def test_every_kernel_equals_its_twin(kind):
    checked = check(kind, kernels(GPU_TILES[kind]))
    assert checked == {name for name in gpu.__all__ if callable(getattr(gpu, name))}


def test_matrices_with_the_tiles_of_iphone():
    """In one format: the tiles are what differs from ``metal``."""
    found = kernels(GPU_TILES["iphone"], ((MLA, "mla", ("q4f16_1",)),))
    assert check("metal", {key: one for key, one in found.items() if one.factory.name in MATRICES}) == MATRICES
