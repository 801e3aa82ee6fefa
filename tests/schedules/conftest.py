"""Every kernel test runs for each vector unit that this machine has."""

import numpy as np
import pytest
from harness import FAMILIES, family_target


@pytest.fixture(params=FAMILIES)
def target(request):
    return family_target(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
