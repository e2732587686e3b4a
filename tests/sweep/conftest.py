"""The project that sweeps are made of."""

import pytest

from tests.sweep.project import write


@pytest.fixture
def project(tmp_path):
    """A folder with the project of `project.py`."""
    write(tmp_path)
    return tmp_path
