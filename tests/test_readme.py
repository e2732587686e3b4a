"""The README is a door: short, with a picture, ten lines of YAML and a table that fits on a screen."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.terminal_picture import PICTURE, draw, record

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_its_table_has_at_most_fifteen_rows():
    table = README.partition("| you want | you write |\n|---|---|\n")[2].partition("\n\n")[0]

    assert 8 <= len(table.splitlines()) <= 15


def test_its_yaml_has_ten_lines():
    (yaml,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)

    assert len([line for line in yaml.splitlines() if not line.startswith("#")]) <= 10


def test_every_file_that_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_file_that_it_links_to_is_in_a_clone():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("no clone: an unpacked source distribution")
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert [link for link in links if link not in tracked] == []


def test_the_picture_asks_the_net_for_nothing():
    assert re.findall(r'(?:href|src|url)\W+"?https?:', PICTURE.read_text()) == []


def mask(svg: str) -> list[str]:
    """Return the texts of a picture, numbers and names of directories masked."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    words = " ".join(texts).replace("&#160;", " ")
    return re.sub(r"\d[\d.,]*(?:_[0-9a-f]{6})?|_[0-9a-f]{10}|…", "N", words).split()


@pytest.mark.exhaustive
def test_the_picture_is_what_a_terminal_shows():
    """Its words are those of the commands today; numbers may differ by processor."""
    assert mask(PICTURE.read_text()) == mask(draw(record()))
