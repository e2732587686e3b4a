"""Shipped `models` and `datasets` beside packages of the same names: others' installed ones, and the user's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.config.check.imports import TargetError, describe_trust, import_object
from runner.core.shipped import NAMES, import_shipped
from tests.support import write_files


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory, and nothing imported of these names."""
    before = {name: sys.modules.pop(name) for name in list_imported()}
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in list_imported():
        del sys.modules[name]
    sys.modules.update(before)


def list_imported() -> list[str]:
    """List the imported modules of these names."""
    return [name for name in sys.modules if name.partition(".")[0] in NAMES]


@pytest.fixture
def theirs(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `datasets`, as Hugging Face's is; importing it is a failure."""
    site = fresh / "venv" / "site-packages"
    write_files(
        site, {"datasets/__init__.py": "raise RuntimeError('imported')", "datasets/arrow.py": "class Arrow: ..."}
    )
    monkeypatch.syspath_prepend(site)
    return site


def test_ours_is_found_beside_an_installed_package_which_is_not_imported(theirs: Path) -> None:
    assert import_object("datasets.digits.Digits").__module__ == "datasets.digits"
    assert import_object("datasets.table.Table").__module__ == "datasets.table"
    assert "datasets" not in sys.modules


@pytest.mark.parametrize("name", ["datasets.load_dataset", "datasets.arrow.Arrow"])
def test_an_installed_package_of_that_name_is_not_trusted(theirs: Path, name: str) -> None:
    with pytest.raises(TargetError, match="is not trusted") as caught:
        import_object(name)

    assert caught.value.remedy == describe_trust(name)


def test_a_package_of_the_users_own_replaces_modules_of_the_same_name_only(fresh: Path) -> None:
    write_files(
        fresh, {"models/__init__.py": "", "models/cnn.py": "class SmallCNN: ...", "models/own.py": "class Own: ..."}
    )

    files = {
        name: sys.modules[import_object(name).__module__].__file__ for name in ("models.cnn.SmallCNN", "models.own.Own")
    }
    ours = sys.modules[import_object("models.mlp.MLP").__module__].__file__

    assert [str(fresh / "models" / name) for name in ("cnn.py", "own.py")] == list(files.values())
    assert Path(__file__).parents[2] / "models" / "mlp.py" == Path(str(ours))


def test_a_name_that_the_users_own_module_gives_comes_first(fresh: Path) -> None:
    write_files(fresh, {"models.py": "class cnn:\n    class SmallCNN: ..."})

    assert sys.modules[import_object("models.cnn.SmallCNN").__module__].__file__ == str(fresh / "models.py")


def test_a_folder_of_data_hides_nothing(fresh: Path) -> None:
    write_files(fresh, {"datasets/mine.csv": "1,2"})

    assert import_object("datasets.digits.Digits").__module__ == "datasets.digits"


def test_a_shipped_module_is_one_module_however_it_is_imported() -> None:
    import models.mlp

    assert import_shipped("models.mlp") is models.mlp is sys.modules[import_object("models.mlp.MLP").__module__]
