"""Tables: CSV, NumPy and Parquet files as whole tensors."""

import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from datasets.table.delimited import ENDINGS, Delimited

MISSING = {"", "NA", "N/A", "n/a", "#N/A", "#NV", "<NA>", "NaN", "nan", "NULL", "null", "None", "?"}
FREE_BYTES, MOST_RATIO = 100 * 2**20, 200  # an archive may become so large, or so many times its own size
ALL_DIFFERENT = 20  # rows from which whole numbers that all differ are no classes
Columns = dict[str, npt.NDArray[np.generic]]


class Table(TensorDataset):
    """A file of equal rows: a sample is (input, target), both rows of tensors that are read once.

    Args:
        path: `.csv` (commas, semicolons, tabs; UTF-8, UTF-16, Windows-1252) or `.parquet` with a header of column
            names, `.npz` with named arrays, `.npy` with a matrix whose columns are named `0`, `1`, ….
        target: the column (or array) to predict.
        inputs: the columns (or the one array of any shape) to predict it from; null: all others.
        classes: whether the target is a class. Texts become their places in the sorted list of all, `self.classes`;
            whole numbers stay; `self.class_to_idx` has the index of each.
        dtype: of the inputs.

    The input is `dtype` [len(inputs)] (or an array's own shape), the target int64 for classes, else `dtype`, a number
    (or an array's own shape). `.npy` and `.npz` are read without unpickling.

    Raises:
        ValueError: a column does not exist, stands twice, or has what is no number or no class.
        ModuleNotFoundError: Parquet without `pyarrow`.
    """

    def __init__(
        self,
        path: str,
        target: str,
        inputs: str | Sequence[str] | None = None,
        *,
        classes: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        columns, lines = read(Path(path))
        names = [name for name in columns if name != target] if inputs is None else inputs
        wanted = [names] if isinstance(names, str) else list(names)
        for name in (target, *wanted):
            if name not in columns:
                raise ValueError(f"{path} has no column {name!r}; it has {', '.join(map(repr, columns))}")
        if "" in wanted:
            raise ValueError(f"{path} has a column without a name: list the columns to predict from in `inputs`")
        twice = sorted({name for name in wanted if wanted.count(name) > 1})
        if twice:
            raise ValueError(f"`inputs` has {twice[0]!r} twice")
        numbers = [as_numbers(columns[name], f"{path}: column {name!r}", dtype, lines) for name in wanted]
        features = numbers[0] if isinstance(names, str) or numbers[0].dim() > 1 else torch.stack(numbers, 1)
        if classes:
            aim, self.class_to_idx = as_classes(columns[target], f"{path}: column {target!r}", lines)
            self.classes = list(self.class_to_idx)
        else:
            aim = as_numbers(columns[target], f"{path}: column {target!r}", dtype, lines)
        self.files = [f"{path}: row {row}" for row in range(len(aim))]
        self.inputs = wanted
        super().__init__(features, aim)

    @staticmethod
    def read_inputs(
        path: str,
        target: str | None = None,
        inputs: str | Sequence[str] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, list[str]]:
        """Read the inputs alone of a table that may lack the target: tensor [N, ...], and a name of each row.

        Columns that are not among the inputs are left out.

        Raises:
            ValueError: a column of the inputs is not there, or has what is no number.
        """
        columns, lines = read(Path(path))
        names = [name for name in columns if name and name != target] if inputs is None else inputs
        wanted = [names] if isinstance(names, str) else list(names)
        if absent := [name for name in wanted if name not in columns]:
            missing, known = ", ".join(map(repr, absent)), ", ".join(map(repr, columns))
            raise ValueError(f"{path} has no column {missing}, which the model was trained on; it has {known}")
        if not wanted:
            raise ValueError(f"{path} has no column to predict from")
        numbers = [as_numbers(columns[name], f"{path}: column {name!r}", dtype, lines) for name in wanted]
        features = numbers[0] if isinstance(names, str) or numbers[0].dim() > 1 else torch.stack(numbers, 1)
        rows = [f"{path}:{line}" for line in lines] or [f"{path}[{row}]" for row in range(len(features))]
        return features, rows


def read(path: Path) -> tuple[Columns, list[int]]:
    """The columns of a table by name, and the line of each row where the file is text.

    Raises:
        ValueError: a name stands twice, a row has other fields than the header, or a cell has no value.
        ModuleNotFoundError: Parquet without `pyarrow`.
    """
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return _read_text(path)
    if ending == ".npz":
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as arrays:
            _refuse_twice(path, arrays.files)
            return dict(arrays), []
    if ending == ".npy":
        with path.open("rb") as file:
            _verify_claim(file, str(path), path.stat().st_size)
        matrix = np.load(path, allow_pickle=False)
        if matrix.ndim != 2:
            raise ValueError(f"{path} has the shape {list(matrix.shape)}: a table has rows and columns")
        return {str(number): matrix[:, number] for number in range(matrix.shape[1])}, []
    if ending == ".parquet":
        return _read_parquet(path), []
    known = ", ".join((*ENDINGS, ".npy", ".npz"))
    raise ValueError(f"{path} is no {known} or .parquet: save it as one of these, such as CSV")


def _read_parquet(path: Path) -> Columns:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        remedy = "pip install 'yaml-experiment-runner[parquet]'"
        raise ModuleNotFoundError(f"Parquet files need pyarrow: {remedy}") from error
    parts = sorted(path.rglob("*")) if path.is_dir() else [path]
    if foreign := next((part for part in parts if part.exists() and not part.is_file() and not part.is_dir()), None):
        raise ValueError(f"{foreign} is no regular file")
    if path.is_file():  # not a folder of parts
        _refuse_twice(path, parquet.read_schema(path).names)
    _verify_memory(path, [parquet.read_metadata(part) for part in parts if part.suffix.lower() == ".parquet"])
    table = parquet.read_table(path)
    columns = {name: np.array(table[name].to_numpy()) for name in table.column_names}
    for name, column in columns.items():
        if column.dtype == object and any(value is None for value in column):
            raise ValueError(f"{path}: column {name!r} has cells without a value")
    return columns


def _refuse_bomb(path: Path) -> None:
    """Raise ValueError for an archive of arrays that becomes too large, or whose arrays claim more than they hold."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size, packed = sum(member.file_size for member in members), path.stat().st_size
        if size > max(FREE_BYTES, MOST_RATIO * packed):
            raise ValueError(
                f"{path} has {packed:,} bytes and becomes {size:,}, more than {MOST_RATIO} times as many, as a bomb "
                "does: if you know where it is from, save it anew with `numpy.savez`"
            )
        for member in members:
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    _verify_claim(file, f"{path}: {member.filename.removesuffix('.npy')!r}", member.file_size)


def _verify_claim(file: IO[bytes], name: str, size: int) -> None:
    """Raise ValueError where the header of an array claims more numbers than there are bytes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    claimed = math.prod(shape) * kind.itemsize
    if claimed > size and not kind.hasobject:  # else NumPy says that it is no plain array
        raise ValueError(f"{name} claims {list(shape)} numbers of {kind}, {claimed:,} bytes, and has {size:,}")


def _verify_memory(path: Path, tables: Sequence[Any]) -> None:
    """Raise ValueError where the cells of a table do not fit into this machine's memory."""
    cells = sum(table.num_rows * table.num_columns for table in tables)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cells * 8 > memory:
        raise ValueError(f"{path} holds {cells:,} cells, and this machine has {memory:,} bytes of memory")


def _read_text(path: Path) -> tuple[Columns, list[int]]:
    table = Delimited(path)
    found = list(table.rows())
    names, texts = table.names, list(zip(*(row for _, row in found), strict=True)) or [()] * len(table.names)
    filled = [number for number, name in enumerate(names) if name or any(map(str.strip, texts[number]))]
    _refuse_twice(path, [names[number] for number in filled])
    if not found:
        raise ValueError(f"{path} has a header, and no rows")
    comma = table.separator != ","
    return {names[n]: _parsed(texts[n], comma=comma) for n in filled}, [line for line, _ in found]


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        said = ", ".join(map(repr, twice))
        raise ValueError(f"{path} has more than one column {said}: rename or remove all but one")


def _parsed(texts: Sequence[str], *, comma: bool) -> npt.NDArray[np.generic]:
    """Integers if all are, else numbers (a decimal comma where commas do not separate), else texts."""
    stripped = np.array([text.strip() for text in texts], dtype=str)
    for cells in (stripped, _with_points(stripped) if comma else stripped):
        for kind in (np.int64, np.float64):
            try:
                return cells.astype(kind)
            except (ValueError, OverflowError):
                continue
    return stripped


def _with_points(cells: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """The cells with decimal points for decimal commas, where all are whole or have one comma."""
    decimal = all(re.fullmatch(r"[-+]?\d*(,\d*)?([eE][-+]?\d+)?", cell) for cell in cells)
    return np.char.replace(cells, ",", ".") if decimal else cells


def _place(where: str, row: int, lines: Sequence[int]) -> str:
    """A cell's line and column: `t.csv:4: column 'a'`, or its row."""
    path, _, column = where.rpartition(": ")
    return f"{path}:{lines[row]}: {column}" if lines else f"{where}, row {row},"


def _is_no_number(cell: str) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return True
    return False


def as_classes(column: npt.NDArray[np.generic], where: str, lines: Sequence[int] = ()) -> tuple[Tensor, dict[str, int]]:
    """Class indices int64 [N], and each class's index by its name.

    Whole numbers are the indices; other values are places in the sorted list of all.

    Raises:
        ValueError: there are cells without a value, decimal numbers, or what cannot be sorted.
    """
    values: npt.NDArray[np.generic]
    if np.issubdtype(column.dtype, np.floating):
        column = column.astype(np.float64)
        empty = np.flatnonzero(np.isnan(column))
    else:
        empty = np.array(
            [row for row, cell in enumerate(column.tolist()) if isinstance(cell, str) and cell.strip() in MISSING]
        )
    if len(empty):
        cell = column.tolist()[empty[0]]
        said = f" ({cell!r}, in {len(empty)} of {len(column)} rows: remove these, or name the class otherwise)"
        at = _place(where, int(empty[0]), lines) if lines else where
        raise ValueError(f"{at} has cells without a value, which are no class{said}")
    try:
        values, labels = np.unique(column, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} holds what is neither a number nor a text, such as {column[0]!r}") from error
    remedy = "`classes=false` takes the target as a number"
    if np.issubdtype(column.dtype, np.floating):
        broken = np.flatnonzero(column != np.rint(column))
        if len(broken):
            example = f"such as {column.tolist()[broken[0]]}"
            raise ValueError(
                f"{where} holds {len(values)} different numbers, {example}, which are no classes: {remedy}"
            )
        column = column.astype(np.int64)
        values = values.astype(np.int64)
    whole = np.issubdtype(column.dtype, np.integer)
    if whole and len(values) == len(column) > ALL_DIFFERENT:
        raise ValueError(f"{where} holds {len(values)} different numbers, one a row, which are no classes: {remedy}")
    indices = column if whole else labels
    names = {str(value): int(value) if whole else place for place, value in enumerate(values.tolist())}
    return torch.from_numpy(indices.astype(np.int64)), names


def as_numbers(column: npt.NDArray[np.generic], where: str, dtype: torch.dtype, lines: Sequence[int] = ()) -> Tensor:
    """A column as a tensor; ValueError where it holds texts."""
    if not (np.issubdtype(column.dtype, np.number) or column.dtype == np.bool_):
        cells = column.tolist()
        row = next((row for row, cell in enumerate(cells) if _is_no_number(cell)), 0)
        at = _place(where, row, lines)
        if isinstance(cells[row], str) and cells[row] in MISSING:
            raise ValueError(f"{at} has no value ({cells[row]!r}): fill the cell, or remove the row")
        raise ValueError(f"{at} holds what is no number, such as {cells[row]!r}")
    return torch.from_numpy(np.ascontiguousarray(column)).to(dtype)
