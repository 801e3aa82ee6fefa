"""Fixtures of the compiler's tests."""

import pytest
from checkpoints import MLA, write_random_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    write_random_checkpoint(folder, MLA)
    return folder
