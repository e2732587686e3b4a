"""Datasets of named columns, such as those of Hugging Face's `datasets`, as samples of tensors.

Nothing of Hugging Face's is imported here: the table and the tokenizer are arguments.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

IGNORED = -100  # class of a target that no loss counts


class Columns(Dataset[dict[str, Any]]):
    """Rows of a table as dict samples: numbers, lists and arrays become tensors, images and texts stay.

    Args:
        source: a dataset whose samples are mappings of columns, `datasets.load_dataset` of Hugging Face for instance.
        columns: names of the columns to keep, or new names to names; all without it.
        tokenizer: called with the columns of `text`; the members of what it returns take their place.
        text: name of the column of texts, or of two (pairs of sentences).
        options: further arguments of the tokenizer, `{truncation: true, max_length: 128}` for instance.
        word_labels: column of classes of the words (a text is a list of words, then); it is spread over the tokens of
            a fast tokenizer, -100 for all but the first token of a word, and is named `labels`.

    Raises:
        ValueError: a column is not there.
    """

    def __init__(
        self,
        source: Any,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        tokenizer: Any = None,  # no Callable: as an argument that would be a function to bind
        text: str | Sequence[str] = "text",
        options: Mapping[str, Any] | None = None,
        word_labels: str | None = None,
    ) -> None:
        self.source, self.rows = source, _RowReader(columns, tokenizer, text, options, word_labels)
        self.classes = find_classes(source, word_labels, self.rows.columns)
        if len(source):
            self.rows.check(source[0])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows(self.source[index])


class StreamedColumns(IterableDataset[dict[str, Any]]):
    """As `Columns`, of a table that is read from its beginning (`streaming: true`); it owns its order.

    Of several workers each takes its rows in turn, unless the source divides them by itself, as Hugging Face's does.

    Args:
        source: an iterable dataset whose samples are mappings of columns.
        columns: names of the columns to keep, or new names to names; all without it.
        tokenizer: called with the columns of `text`; the members of what it returns take their place.
        text: name of the column of texts, or of two (pairs of sentences).
        options: further arguments of the tokenizer.
        word_labels: column of classes of the words, see `Columns`.
    """

    def __init__(
        self,
        source: Any,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        tokenizer: Any = None,  # no Callable: as an argument that would be a function to bind
        text: str | Sequence[str] = "text",
        options: Mapping[str, Any] | None = None,
        word_labels: str | None = None,
    ) -> None:
        self.source, self.rows = source, _RowReader(columns, tokenizer, text, options, word_labels)
        self.classes = find_classes(source, word_labels, self.rows.columns)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        divides = isinstance(self.source, IterableDataset)
        for number, row in enumerate(self.source):
            if worker is None or divides or number % worker.num_workers == worker.id:
                yield self.rows(row)


class _RowReader:
    """Reader of a row: its columns, renamed, its texts tokenized, its numbers as tensors."""

    def __init__(
        self,
        columns: Sequence[str] | Mapping[str, str] | None,
        tokenizer: Any,
        text: str | Sequence[str],
        options: Mapping[str, Any] | None,
        word_labels: str | None,
    ) -> None:
        named = columns if columns is None or isinstance(columns, Mapping) else {name: name for name in columns}
        self.columns = None if named is None else dict(named)
        self.tokenizer, self.options, self.word_labels = tokenizer, dict(options or {}), word_labels
        self.text = [text] if isinstance(text, str) else list(text)

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise ValueError where a row lacks a column that is named."""
        wanted = [*(self.columns or {}).values(), *(self.text if self.tokenizer else []), self.word_labels]
        missing = [name for name in wanted if name is not None and name not in row]
        if missing:
            raise ValueError(f"there is no column {', '.join(missing)}: the table has {', '.join(row)}")

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sample of a row."""
        read = [] if self.tokenizer is None else self.text
        plain = {name: name for name in row if name not in (*read, self.word_labels)}
        sample = {new: to_tensor(row[old]) for new, old in (self.columns or plain).items()}
        if self.tokenizer is None:
            return sample
        words = {} if self.word_labels is None else {"is_split_into_words": True}
        made = self.tokenizer(*[row[name] for name in self.text], **words, **self.options)
        sample |= {name: to_tensor(value) for name, value in made.items()}
        if self.word_labels is not None:
            sample["labels"] = spread_labels(row[self.word_labels], made.word_ids())
        return sample


def to_tensor(value: Any) -> Any:
    """Convert numbers, arrays and nested lists of numbers to tensors; return anything else as it is."""
    if isinstance(value, np.ndarray | np.generic):
        return torch.as_tensor(value.copy()) if value.dtype.kind in "biuf" else value
    if isinstance(value, bool | int | float):
        return torch.tensor(value)
    if isinstance(value, list) and value:
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):  # texts, images, lists of different lengths
            return value
    return value


def spread_labels(labels: Sequence[int], words: Sequence[int | None]) -> torch.Tensor:
    """Spread the classes of words over their tokens: -100 for all but the first token of a word, int64 [T]."""
    first = [word is not None and word not in words[:place] for place, word in enumerate(words)]
    pairs = zip(words, first, strict=True)
    return torch.tensor([labels[word] if starts and word is not None else IGNORED for word, starts in pairs])


def find_classes(source: Any, word_labels: str | None, columns: Mapping[str, str] | None) -> list[str] | None:
    """Find the names of the classes where the table has them (Hugging Face's `ClassLabel`)."""
    features = getattr(source, "features", None) or {}
    for name in (word_labels, *(columns or {}).values(), "label", "labels"):
        feature = features.get(name) if name is not None else None
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            return [str(one) for one in names]
    return None
