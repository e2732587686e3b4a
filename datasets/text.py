"""Texts with a class: made-up reviews, tables of texts, and a tokenizer of words fitted to the training split."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

KINDS = (("awful", "boring", "clumsy", "dull", "weak"), ("brilliant", "charming", "clever", "fine", "moving"))
THINGS = ("acting", "book", "film", "music", "plot", "story")
DEGREES = ("", "very ", "rather ", "really ")
PADDING, UNKNOWN = 0, 1  # ids that no word has


class MadeReviews(Dataset[dict[str, Any]]):
    """Made-up reviews of one to five clauses; a sample is a dict of `text` and `label` (1 where most of it is praise).

    "not" turns the word after it around, so that counting words is not enough.

    Args:
        count: of the reviews.
        seed: of what they say.
    """

    classes = ("negative", "positive")

    def __init__(self, count: int = 1000, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)

        def draw(length: int) -> int:
            return int(torch.randint(length, (), generator=generator))

        label, clauses = draw(2), []
        for number in range(1 + 2 * draw(3)):
            praise = label if number % 2 == 0 else draw(2)  # the first, third and fifth agree: the majority
            turned = draw(3) == 0
            word = KINDS[praise ^ int(turned)][draw(5)]
            degree = "not " if turned else DEGREES[draw(len(DEGREES))]
            clauses.append(f"the {THINGS[draw(len(THINGS))]} is {degree}{word}")
        return {"text": ", ".join(clauses), "label": label}


class TextTable(Dataset[dict[str, Any]]):
    """Texts and classes of a table; a sample is a dict of `text` and `label`.

    Args:
        path: a CSV or TSV file with a header, or a file of JSON lines (`.jsonl`).
        text: column of the text.
        label: column of the class, a number or a name.
        classes: names of the classes in order; without them those of the file, sorted.

    Raises:
        ValueError: a column is missing, or a row has no text, no class, or one not among `classes`, with the line.
    """

    def __init__(self, path: str, text: str = "text", label: str = "label", classes: list[str] | None = None) -> None:
        lines, rows = _read_rows(Path(path))
        missing = [name for name in (text, label) if rows and name not in rows[0]]
        if missing or not rows:
            have = ", ".join(rows[0]) if rows else "no rows"
            raise ValueError(f"{path} has no column {missing[0] if missing else text!r}: it has {have}")
        for line, row in zip(lines, rows, strict=True):
            for column in (text, label):
                value = row.get(column)
                if value is None or (column == label and not str(value).strip()):
                    raise ValueError(f"{path}:{line} has no {column!r}")
        named = [str(row[label]) for row in rows]
        numbers = classes is None and all(name.isdigit() for name in named)
        known = sorted(set(named), key=int if numbers else str) if classes is None else [str(name) for name in classes]
        for line, name in zip(lines, named, strict=True):
            if name not in known:
                raise ValueError(f"{path}:{line} has the class {name!r}, which is not among {', '.join(known)}")
        self.classes = known
        self.texts = [str(row[text]) for row in rows]
        self.targets = torch.tensor([known.index(name) for name in named])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self.texts[index], "label": int(self.targets[index])}


def _read_rows(path: Path) -> tuple[list[int], list[dict[str, Any]]]:
    """Read the rows of a table and the line that each ends on; U+2028 and its like, which JSON may hold, end none."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        pairs = [(number, json.loads(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
        pairs = [(table.line_num, row) for row in table]
    return [number for number, _ in pairs], [row for _, row in pairs]


class Words:
    """Tokenizer of words as a transform of whole samples: a text becomes ids, int64 [T].

    It knows the words of the training split: 0 is padding, 1 a word that is not known, and from 2 on come the most
    frequent ones.

    Args:
        limit: ids at most: the size of the model's embedding.
        length: words of a text at most.
        text: member of the sample that is read and left out.
        tokens: member that is added.
    """

    def __init__(self, limit: int, length: int = 256, text: str = "text", tokens: str = "tokens") -> None:
        self.limit, self.length, self.text, self.tokens = limit, length, text, tokens
        self.ids: dict[str, int] = {}

    def fit(self, train_split: Dataset[dict[str, Any]]) -> None:
        """Find the most frequent words of the training split, equally frequent ones by the alphabet."""
        rows = (train_split[index] for index in range(len(train_split)))  # type: ignore[arg-type]
        counts = Counter(word for row in rows for word in split_words(row[self.text]))
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: self.limit - 2]
        self.ids = {word: number for number, word in enumerate(frequent, start=2)}

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Replace the text of a sample by its ids; a text without a word is one unknown word."""
        words = split_words(sample[self.text])[: self.length] or [""]
        ids = torch.tensor([self.ids.get(word, UNKNOWN) for word in words])
        return {self.tokens: ids} | {name: value for name, value in sample.items() if name != self.text}


def split_words(text: str) -> list[str]:
    """Split a text to words and marks, in small letters."""
    return re.findall(r"\w+|[^\w\s]", text.lower())
