"""Tables: CSV, NumPy and Parquet files as whole tensors."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

Columns = dict[str, npt.NDArray[np.generic]]


class Table(TensorDataset):
    """A file of equal rows: a sample is (input, target), both rows of tensors that are read once.

    Args:
        path: `.csv` or `.parquet` with a header of column names, `.npz` with named arrays, `.npy` with a matrix whose
            columns are named `0`, `1`, ….
        target: the column (or array) to predict.
        inputs: the columns (or the one array of any shape) to predict it from; null: all others.
        classes: whether the target is a class. Texts become their places in the sorted list of all, `self.classes`.
        dtype: of the inputs.

    The input is `dtype` [len(inputs)] (or an array's own shape), the target int64 for classes, else `dtype`, a number
    (or an array's own shape). `.npy` and `.npz` are read without unpickling.

    Raises:
        ValueError: a column does not exist, or has what is no number.
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
        columns = read(Path(path))
        names = [name for name in columns if name != target] if inputs is None else inputs
        wanted = [names] if isinstance(names, str) else list(names)
        for name in (target, *wanted):
            if name not in columns:
                raise ValueError(f"{path} has no column {name!r}; it has {', '.join(map(repr, columns))}")
        numbers = [as_numbers(columns[name], f"{path}: column {name!r}", dtype) for name in wanted]
        features = numbers[0] if isinstance(names, str) or numbers[0].dim() > 1 else torch.stack(numbers, 1)
        if classes:
            aim, self.classes = as_classes(columns[target], f"{path}: column {target!r}")
        else:
            aim = as_numbers(columns[target], f"{path}: column {target!r}", dtype)
        self.files = [f"{path}: row {row}" for row in range(len(aim))]
        super().__init__(features, aim)


def read(path: Path) -> Columns:
    """The columns of a table by name."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise ValueError(f"{path}:{number} has {len(row)} fields, the header {len(header)}")
        return {name: _parsed(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix == ".npy":
        matrix = np.load(path, allow_pickle=False)
        return {str(number): matrix[:, number] for number in range(matrix.shape[1])}
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Parquet files need pyarrow: pip install pyarrow") from error
        table = parquet.read_table(path)
        columns = {name: np.array(table[name].to_numpy()) for name in table.column_names}
        for name, column in columns.items():
            if column.dtype == object and any(value is None for value in column):
                raise ValueError(f"{path}: column {name!r} has cells without a value")
        return columns
    raise ValueError(f"{path} is no .csv, .npy, .npz or .parquet")


def _parsed(texts: Sequence[str]) -> npt.NDArray[np.generic]:
    """Integers if all are, else numbers, else texts."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(texts, dtype=str).astype(kind)
        except ValueError:
            continue
    return np.array(texts, dtype=str)


def as_classes(column: npt.NDArray[np.generic], where: str) -> tuple[Tensor, list[str]]:
    """Class indices int64 [N] and the names of the classes: integers as they are, else places in the sorted list.

    Raises:
        ValueError: there are cells without a value, or what cannot be sorted.
    """
    if np.issubdtype(column.dtype, np.floating) and np.isnan(column.astype(np.float64)).any():
        raise ValueError(f"{where} has cells without a value, which are no class")
    try:
        values, labels = np.unique(column, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} holds what is neither a number nor a text, such as {column[0]!r}") from error
    indices = column if np.issubdtype(column.dtype, np.integer) else labels
    return torch.from_numpy(indices.astype(np.int64)), [str(value) for value in values]


def as_numbers(column: npt.NDArray[np.generic], where: str, dtype: torch.dtype) -> Tensor:
    """A column as a tensor; ValueError where it holds texts."""
    if not (np.issubdtype(column.dtype, np.number) or column.dtype == np.bool_):
        raise ValueError(f"{where} holds what is no number, such as {column.tolist()[0]!r}")
    return torch.from_numpy(np.ascontiguousarray(column)).to(dtype)
