"""Kernel tests run for each vector unit that this machine has, and for what its matrices multiply."""

import numpy as np
import pytest
from harness import CODED, DOT_FAMILIES, FAMILIES, KINDS, family_target, kind_of


@pytest.fixture(params=FAMILIES)
def target(request):
    return family_target(request.param)


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request):
    """A vector unit, a weight format and an activation format that go together."""
    return kind_of(*request.param)


@pytest.fixture(params=[(family, mode) for family in DOT_FAMILIES for mode in CODED], ids="-".join)
def coded(request):
    """A target that multiplies bytes and a format of 8-bit codes."""
    family, mode = request.param
    return family_target(family), mode


@pytest.fixture
def rng():
    return np.random.default_rng(0)
