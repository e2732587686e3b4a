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


@pytest.mark.benchmark
def test_stacks_of_each_case_are_measured() -> None:
    run = [sys.executable, "-m", "tests.benchmarks.stacks", "--small", "--repeats", "1", "--device", "cpu"]
    table = subprocess.run(run, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert len(table.splitlines()) == 4, table
