"""What the browser tests share: one Chromium a file, and the same words where there is none."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/ is of the repository, not of the package

from benchmarks import browser as chrome


def chromium_or_fail():
    """The path of Chromium; without one the test fails with the line that installs it."""
    try:
        return chrome.find_chromium()
    except ValueError as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="module")
def browser():
    chromium_or_fail()
    with chrome.chromium() as started:
        yield started
