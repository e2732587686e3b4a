"""The benchmarks run; what they say about time is read by people."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.benchmark
def test_every_row_is_measured() -> None:
    run = [sys.executable, "-m", "tests.benchmarks", "--repeats", "1"]
    table = subprocess.run(run, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert "not measured" not in table
