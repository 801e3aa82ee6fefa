"""Every kernel for CUDA and Metal, in TVM's text for these, against its twin."""

import pytest
from shim_kernels import library, shim_kernels

from runtime_py.selftest.checks import TOKENS, check_kernel
from runtime_py.selftest.subject import Subject
from schedules import gpu


@pytest.mark.parametrize("kind", ["cuda", "metal"])
def test_every_kernel_equals_its_twin(kind):
    engine, problems, checked = library(kind), {}, set()
    for seed, (key, built) in enumerate(shim_kernels().items()):
        subject = Subject(built.factory.arguments, built.factory.weights, built.weights, seed)
        result = check_kernel(built.name, built.factory, subject, engine, TOKENS)
        checked.add(built.factory.name)
        if result.problem:
            problems[key] = result.problem
    assert not problems
    assert checked == {name for name in gpu.__all__ if callable(getattr(gpu, name))}
