"""Tables as spreadsheets write them, cells that are no value, and the classes of splits."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.table import Table
from runner.data.splitting import compare_classes

PLAIN = "a,b,target\n0.5,1,x\n1.5,2,yö\n2.5,3,x\n"
WRITTEN = {
    "plain.csv": PLAIN.encode(),
    "bom.csv": PLAIN.encode("utf-8-sig"),
    "utf16.csv": PLAIN.encode("utf-16"),
    "utf16-without-mark.csv": PLAIN.encode("utf-16-le"),
    "latin.csv": PLAIN.encode("latin-1"),
    "UPPER.CSV": PLAIN.encode(),
    "windows.csv": PLAIN.replace("\n", "\r\n").encode(),
    "mac.csv": PLAIN.replace("\n", "\r").encode(),
    "tabs.csv": PLAIN.replace(",", "\t").encode(),
    "tabs.tsv": PLAIN.replace(",", "\t").encode(),
    "bars.txt": PLAIN.replace(",", "|").encode(),
    "semicolons.csv": PLAIN.replace(",", ";").encode(),
    "decimal-commas.csv": PLAIN.replace(",", ";").replace(".", ",").encode(),
    "decimal-commas-tabs.csv": PLAIN.replace(",", "\t").replace(".", ",").encode("utf-16"),
    "sep.csv": ("sep=;\n" + PLAIN.replace(",", ";")).encode(),
    "blanks.csv": PLAIN.replace(",", ", ").replace("\n", " \n").encode(),
    "blank-lines.csv": PLAIN.replace("\n1.5", "\n\n1.5").encode() + b"\n  \n",
    "empty-rows.csv": PLAIN.encode() + b",,\n,,\n",
    "empty-columns.csv": PLAIN.replace("\n", ",,\n").encode(),
    "comments.csv": ("# from a sensor, in volt\n" + PLAIN + "# the end\n").encode(),
    "quoted.csv": PLAIN.replace("x", '"x"').replace("0.5", '"0.5"').encode(),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_table_however_it_is_written(name: str, tmp_path: Path) -> None:
    """Encoding, separator, decimal comma, blanks, blank lines and comments change no number and no name."""
    (tmp_path / name).write_bytes(WRITTEN[name])
    table = Table(str(tmp_path / name), "target")

    assert [[0.5, 1], [1.5, 2], [2.5, 3]] == table.tensors[0].tolist()
    assert ([0, 1, 0], {"x": 0, "yö": 1}) == (table.tensors[1].tolist(), table.class_to_idx)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,y\n1,2,0\n\n1,two,0\n", r"t.csv:4: column 'b' holds what is no number, such as 'two'"),
        ("a,b,y\n1,2,0\n,3,0\n", r"t.csv:3: column 'a' has no value"),
        ("a,b,y\n1,2,0\n1,NA,0\n", r"t.csv:3: column 'b' has no value"),
        ("# one\na,y\n1,cat\n2,\n", r"t.csv:4: column 'y' has cells without a value, which are no class"),
        ("a,y\n1,0\n2,10\n3,NA\n4,2\n", r"t.csv:4: column 'y' has cells without a value"),
        ("a,y\n1,0\n2,nan\n", r"t.csv:3: column 'y' has cells without a value"),
        ("a,a,y\n1,2,0\n", r"t.csv has more than one column 'a'"),
        (",a,y\n0,1,0\n", r"a column without a name: list the columns to predict from in `inputs`"),
        ("a;b;y\n1.234,5;2;0\n", r"t.csv:2: column 'a' holds what is no number"),
        ("a,b,y\n1,2,0\n1,5,2,0\n", r"t.csv:3 has 4 fields, the header 3 \(a comma within a field"),
        ("a,y\n", "has a header, and no rows"),
        ("", "is empty"),
        ("PK\x03\x04", "is no text but a workbook"),
        ("a,y\n1,0.5\n2,1.5\n", "holds 2 different numbers, such as 0.5, which are no classes: `classes=false`"),
        ("a,y\n" + "".join(f"1,{n}\n" for n in range(30)), "holds 30 different numbers, one a row"),
    ],
)
def test_a_cell_or_column_that_cannot_be_is_named(text: str, message: str, tmp_path: Path) -> None:
    """The file, the line and the column; nothing is taken for a class or dropped in silence."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Table(str(tmp_path / "t.csv"), "y")


def test_columns_that_stand_twice_in_parquet_and_in_inputs(tmp_path: Path) -> None:
    """One of two columns of a name is never chosen in silence."""
    from pyarrow import array, parquet, table

    numbers = array([1, 2])
    parquet.write_table(table([numbers, numbers, numbers], names=["a", "a", "y"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="more than one column 'a'"):
        Table(str(tmp_path / "t.parquet"), "y")
    np.savez(tmp_path / "t.npz", a=np.arange(2), y=np.arange(2))
    with pytest.raises(ValueError, match="`inputs` has 'a' twice"):
        Table(str(tmp_path / "t.npz"), "y", ["a", "a"])


def _table(folder: Path, name: str, labels: str) -> Table:
    (folder / name).write_text("a,y\n" + "".join(f"1,{label}\n" for label in labels.split()))
    return Table(str(folder / name), "y")


@pytest.mark.parametrize(
    ("train", "val", "difference"),
    [
        ("cat dog fox", "fox dog", "'dog' is 0 in val and 1 in train"),
        ("cat dog fox", "cat dog goat", "train has no 'goat'"),
        ("cat dog", "0 1", "train has no '0', '1'"),
        ("0 1 2", "cat dog", "train has no 'cat', 'dog'"),
        ("1 2 10 x", "1 2 10", "'1' is 1 in val and 0 in train"),
        ("cat dog fox", "cat dog", ""),
        ("cat dog", "dog cat", ""),
        ("0 1 2 10", "10 1", ""),
        ("0 1 2", "0.0 2.0", ""),
    ],
)
def test_the_classes_of_a_split_are_those_of_train(train: str, val: str, difference: str, tmp_path: Path) -> None:
    """Each name of a class has train's index in every split, or the error names both lists."""
    splits = {"val": _table(tmp_path, "val.csv", val), "train": _table(tmp_path, "train.csv", train)}
    if not difference:
        compare_classes(splits)
        return
    with pytest.raises(ValueError, match="classes of val are not those of train") as said:
        compare_classes(splits)
    assert difference in str(said.value)


def test_folders_with_other_classes_or_hidden_ones(tmp_path: Path, runner: Callable[..., Any]) -> None:
    """A class that is missing shifts all that follow, and a hidden folder shifts every class: both are refused."""
    from PIL import Image

    for place in ("train/cat", "train/dog", "val/dog", "hidden/.ipynb_checkpoints", "hidden/cat", "hidden/dog"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "0.png")
    base = ("show", "data", "experiment=null", "dataset=image_folder", "dataset.sample.size=[4,4]", "device=cpu")
    model = ("model=small_cnn", "model.in_channels=3", "model.num_classes=2")

    ran = runner(*base, *model, "dataset.train.root=train", "dataset.val.root=val")
    assert ran.status == 1
    assert "train: 'cat' 0, 'dog' 1 (2)" in ran.err
    assert "val: 'dog' 0 (1)" in ran.err
    ran = runner(*base, *model, "dataset.train.root=hidden", "dataset.val.root=hidden")
    assert ran.status == 1
    assert re.search(r"hidden/\.ipynb_checkpoints as the class 0: remove this hidden folder", ran.err)


def test_decimals_are_no_classes_and_the_key_is_said(tmp_path: Path, runner: Callable[..., Any]) -> None:
    """The remedy is a line that works, with the dataset's own key."""
    rows = "".join(f"{n},{n / 7}\n" for n in range(40))
    (tmp_path / "reg.csv").write_text("a,y\n" + rows)
    base = ("experiment=null", "dataset=table", "dataset.source.path=reg.csv", "dataset.source.target=y", "log=quiet")
    ran = runner(*base, "dataset.sample.shape=[1]", "model=mlp", "model.sizes=[1,2,1]", "loss=mse")
    assert ran.status == 1
    assert "holds 40 different numbers" in ran.err
    assert "`dataset.source.classes=false`" in ran.err
