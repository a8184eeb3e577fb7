"""`--at-once`: what runs for an hour shows its failures when they come."""

import subprocess
import sys
from pathlib import Path

import pytest

from lab.node import REPOSITORY

FAILING = """
import pytest

@pytest.fixture
def broken():
    raise ValueError("no such thing")

def test_wrong(): assert 1 == 2
def test_right(): pass
def test_without(broken): pass
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_failures_are_shown_before_the_end_and_once(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_some.py").write_text(FAILING)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "-n", workers, "--at-once", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False)

    shown, _, _ = done.stdout.partition("= ERRORS =")
    assert done.returncode == 1, done.stdout + done.stderr
    assert shown.count("FAILED in its call: test_some.py::test_wrong") == 1
    assert shown.count("FAILED in its setup: test_some.py::test_without") == 1
    assert sorted(line[1:].strip() for line in shown.splitlines() if line.startswith("E ")) == [
        "ValueError: no such thing", "assert 1 == 2"]
