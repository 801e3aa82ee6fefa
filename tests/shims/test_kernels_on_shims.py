"""Every kernel for CUDA and Metal, in TVM's text for these, against its twin."""

import pytest
from gpu_kernels import kernels
from shim_kernels import library

from runtime_py.selftest.checks import TOKENS, check_kernel
from runtime_py.selftest.subject import Subject
from schedules import gpu
from schedules.tiles import GPU_TILES


@pytest.mark.parametrize("kind", ["cuda", "metal"])
def test_every_kernel_equals_its_twin(kind):
    built, problems, checked = kernels(GPU_TILES[kind]), {}, set()
    engine = library(kind, built.values())
    for seed, (key, one) in enumerate(built.items()):
        subject = Subject(one.factory.arguments, one.factory.weights, one.weights, seed)
        result = check_kernel(one.name, one.factory, subject, engine, TOKENS)
        checked.add(one.factory.name)
        if result.problem:
            problems[key] = result.problem
    assert not problems
    assert checked == {name for name in gpu.__all__ if callable(getattr(gpu, name))}
