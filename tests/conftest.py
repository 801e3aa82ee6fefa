"""Makes the repository's packages and the shared test helpers importable from every test; where CI says so, a test
that was skipped for a missing tool counts as failed."""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

# Workers of pytest-xdist have a core each, where a second thread would only wait. Tests that are about threads start
# processes of their own and say how many.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TVM_NUM_THREADS", "1")

REQUIRE_TOOLS = "BLOCKFFN_REQUIRE_TOOLS"
# In the reasons of skips that are no fault of the installation: what the hardware lacks, what is too large to download.
EXEMPT = ("this machine lacks", "that no test fetches")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get(REQUIRE_TOOLS) and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if not any(words in reason for words in EXEMPT):
            report.outcome, report.longrepr = "failed", f"{REQUIRE_TOOLS} is set, but the test was skipped: {reason}"
