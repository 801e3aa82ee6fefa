"""Makes the repository's packages and the shared test helpers importable from every test; where CI says so, a test
that was skipped for a missing tool counts as failed."""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

REQUIRE_TOOLS = "BLOCKFFN_REQUIRE_TOOLS"
HARDWARE = "this machine lacks"  # in the reason of a skip that no installation can cure


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get(REQUIRE_TOOLS) and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if HARDWARE not in reason:
            report.outcome, report.longrepr = "failed", f"{REQUIRE_TOOLS} is set, but the test was skipped: {reason}"
