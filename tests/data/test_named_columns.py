"""Tables of named columns, texts, shards and the functions that join their samples."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import VOCSegmentation

from datasets.collate import Pad, list_members
from datasets.columns import Columns, StreamedColumns, spread_labels
from datasets.masks import SizedMasks
from datasets.shapes import ShapeBoxes, ShapeMasks
from datasets.shards import DecodedMembers, TarShards, expand_braces
from datasets.text import MadeReviews, TextTable, Words
from models.text import TextTransformer

ROWS = [{"text": "a bb", "other": "c", "label": 1, "box": [1, 2]}, {"text": "a", "other": "d", "label": 0, "box": []}]


def tokenize(*texts, limit=9):
    """Return the length of each word, as a tokenizer of Hugging Face's returns a mapping of lists."""
    return {"ids": [len(word) for text in texts for word in text.split()][:limit]}


def test_columns_are_chosen_renamed_and_tokenized() -> None:
    plain = Columns(ROWS)[0]
    made = Columns(ROWS, {"labels": "label"}, tokenize, ["text", "other"], {"limit": 2})[0]

    assert {name: getattr(value, "tolist", lambda value=value: value)() for name, value in plain.items()} == ROWS[0]
    assert {name: value.tolist() for name, value in made.items()} == {"labels": 1, "ids": [1, 2]}
    with pytest.raises(ValueError, match="there is no column lable: the table has text, other, label, box"):
        Columns(ROWS, ["lable"])


def test_a_streamed_table_is_divided_among_workers() -> None:
    rows = [{"number": number} for number in range(7)]
    read = DataLoader(StreamedColumns(rows), batch_size=None, num_workers=2)

    assert sorted(int(row["number"]) for row in read) == list(range(7))


def test_classes_of_words_are_spread_over_tokens() -> None:
    """The first token of a word has its class; others, and the tokens around a text, do not count."""
    assert spread_labels([5, 6], [None, 0, 0, 1, None]).tolist() == [-100, 5, -100, 6, -100]


@pytest.mark.parametrize(("side", "more"), [("right", {}), ("left", {"multiple_of": 4})])
def test_padding(side, more) -> None:
    samples = [{"ids": torch.tensor([1, 2, 3]), "label": 1, "text": "x"}, {"ids": [4], "label": 0, "text": "y"}]
    batch = Pad({"ids": 9}, mask="mask", side=side, **more)(samples)
    expected = [[1, 2, 3], [4, 9, 9]] if side == "right" else [[9, 1, 2, 3], [9, 9, 9, 4]]

    assert batch["ids"].tolist() == expected
    assert batch["mask"].tolist() == [[int(number != 9) for number in row] for row in expected]
    assert batch["label"].tolist() == [1, 0]
    assert batch["text"] == ["x", "y"]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([[1, 2], [0.5, 1.5]], [[1, 2], [0.5, 1.5]]),
        ([[], [1, 2]], torch.tensor([[9, 9], [1, 2]])),
        ([[], [[1, 2]]], torch.tensor([[[9, 9]], [[1, 2]]])),
        ([[], []], [[], []]),
    ],
)
def test_the_padded_dtype_is_that_of_all_samples(members, expected) -> None:
    """Not that of the first one, which may be of whole numbers, or empty."""
    padded = Pad({"x": 9})([{"x": member} for member in members])["x"]
    expected = torch.as_tensor(expected)

    assert padded.dtype == expected.dtype
    assert padded.tolist() == expected.tolist()


def test_samples_as_lists() -> None:
    boxes = [ShapeBoxes(3, size=32)[index] for index in range(3)]
    images, targets = list_members(boxes)

    assert [image.shape for image in images] == [(3, 32, 32)] * 3
    assert all(len(target["boxes"]) == len(target["labels"]) for target in targets)


def test_shapes_are_where_their_boxes_and_masks_say() -> None:
    mask, (_, target) = ShapeMasks(5, seed=3)[4][1], ShapeBoxes(5, seed=3)[4]
    left, top, right, low = target["boxes"][-1].int().tolist()

    assert set(mask[top:low, left:right].unique().tolist()) >= {int(target["labels"][-1])}
    assert int(mask[top:low, left:right].count_nonzero()) >= 0.7 * (low - top) * (right - left)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Make a folder as Pascal VOC's, with four pictures of two sizes: class 20 above, 255 below."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for number in range(4):
        size = (50, 40) if number % 2 else (30, 70)
        Image.new("RGB", size, (200, 0, 0)).save(folder / "JPEGImages" / f"{number}.jpg")
        mask = Image.new("P", size, 255)
        mask.putpalette([*range(256)] * 3)
        mask.paste(20, (0, 0, size[0], size[1] // 2))
        mask.save(folder / "SegmentationClass" / f"{number}.png")
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("0\n1\n2\n3\n")
    return tmp_path


def test_pictures_and_masks_of_files_have_one_size(voc: Path) -> None:
    """Pascal VOC's differ in size and are PIL images; a mask keeps its classes, 255 among them."""
    made = SizedMasks(VOCSegmentation(str(voc), image_set="train"), size=64)
    pairs = [made[index] for index in range(len(made))]

    assert {("Image", (3, 64, 64), torch.uint8)} == {(type(a).__name__, (*a.shape,), a.dtype) for a, _ in pairs}
    assert {("Mask", (64, 64), torch.int64)} == {(type(b).__name__, (*b.shape,), b.dtype) for _, b in pairs}
    assert all(mask[:32].eq(20).all() and mask[32:].eq(255).all() for _, mask in pairs)


def test_words_of_the_training_split_alone() -> None:
    words = Words(limit=4, length=3)
    words.fit([{"text": "the film, the plot"}, {"text": "The book"}])
    sample = words({"text": "The plot is a film", "label": 1})

    assert words.ids == {"the": 2, ",": 3}
    assert sample["tokens"].tolist() == [2, 1, 1]
    assert sample["label"] == 1
    assert words({"text": ""})["tokens"].tolist() == [1]


def test_made_reviews_have_both_classes_alike_and_are_the_same_again() -> None:
    reviews = MadeReviews(200)
    labels = [reviews[index]["label"] for index in range(200)]

    assert 80 < sum(labels) < 120
    assert reviews[7] == MadeReviews(200)[7] != MadeReviews(200, seed=1)[7]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_tables_of_texts(tmp_path: Path, ending: str) -> None:
    rows = [{"said": "a, b", "kind": "no"}, {"said": "c", "kind": "yes"}]
    mark = "\t" if ending == "tsv" else ","
    lines = ["said" + mark + "kind"] + [mark.join([f'"{row["said"]}"', row["kind"]]) for row in rows]
    text = "\n".join(map(json.dumps, rows) if ending == "jsonl" else lines)
    (tmp_path / f"t.{ending}").write_text(text)
    table = TextTable(str(tmp_path / f"t.{ending}"), "said", "kind")

    assert [table[index] for index in range(2)] == [{"text": "a, b", "label": 0}, {"text": "c", "label": 1}]
    with pytest.raises(ValueError, match=rf":{2 + (ending != 'jsonl')} has the class 'yes', which is not among no"):
        TextTable(str(tmp_path / f"t.{ending}"), "said", "kind", ["no"])
    with pytest.raises(ValueError, match="has no column 'text': it has said, kind"):
        TextTable(str(tmp_path / f"t.{ending}"))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_table_is_cut_at_line_ends_alone(tmp_path: Path, ending: str) -> None:
    """Not at U+2028, U+0085 or a form feed, which a text may have inside."""
    said = "a\u2028b\x85c\x0cd"
    path = tmp_path / f"t.{ending}"
    row = json.dumps({"text": said, "label": 0}, ensure_ascii=False) if ending == "jsonl" else f"text,label\n{said},0"
    path.write_text(row + "\n", encoding="utf-8")
    table = TextTable(str(path))

    assert [table[number]["text"] for number in range(len(table))] == [said]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("t.csv", "text,label\na,0\nb,\n", ":3 has no 'label'"),
        ("t.csv", "text,label\na,0\nb\n", ":3 has no 'label'"),
        ("t.jsonl", '{"text": "a", "label": 0}\n\n{"text": "b", "label": null}\n', ":3 has no 'label'"),
        ("t.jsonl", '{"text": "a", "label": 0}\n{"label": 1}\n', ":2 has no 'text'"),
    ],
)
def test_a_row_without_a_class_or_a_text_is_refused(tmp_path: Path, name: str, content: str, where: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=where):
        TextTable(str(tmp_path / name))


def test_padding_changes_no_output_of_the_transformer() -> None:
    model = TextTransformer(20, 3, width=8, heads=2).eval()
    tokens = torch.tensor([[3, 4, 5]])

    with torch.no_grad():
        assert torch.allclose(model(tokens), model(torch.tensor([[3, 4, 5, 0, 0]])), atol=1e-6)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three shards with four samples each: a picture of one grey, its number, and a text."""
    for shard in range(3):
        with tarfile.open(tmp_path / f"s-{shard:02d}.tar", "w") as tar:
            for number in range(4 * shard, 4 * shard + 4):
                picture = io.BytesIO()
                Image.new("L", (4, 3), number).save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("cls", b"%d" % number), ("txt", b"t")):
                    entry = tarfile.TarInfo(f"x/{number:03d}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return str(tmp_path / "s-{00..02}.tar")


MEMBERS = {"image": "jpg|png", "label": "cls"}


def test_shards_are_read_in_order_and_by_workers(shards: str) -> None:
    samples = list(TarShards(shards, MEMBERS))
    divided = DataLoader(TarShards(shards, {"label": "cls"}, shuffle=5), batch_size=None, num_workers=2)

    assert [sample["label"] for sample in samples] == list(range(12))
    assert [sample["image"].getpixel((0, 0)) for sample in samples] == [(number,) * 3 for number in range(12)]
    assert sorted(sample["label"] for sample in divided) == list(range(12))


def test_shards_are_shuffled_as_the_generator_says(shards: str) -> None:
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append([sample["label"] for sample in TarShards(shards, MEMBERS, shuffle=5)])

    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(12)) != orders[0]


def test_what_a_shard_lacks_is_named(shards: str) -> None:
    with pytest.raises(ValueError, match=r"s-00\.tar: sample x/000 has no member jpeg: it has png, cls, txt"):
        next(iter(TarShards(shards, {"image": "jpeg"})))
    with pytest.raises(ValueError, match="its cls cannot be read: invalid literal"):
        next(iter(DecodedMembers([{"__key__": "1", "cls": b"x"}], {"label": "cls"})))
    with pytest.raises(ValueError, match="there are no shards"):
        TarShards(shards.replace("s-{00..02}", "z*"), MEMBERS)


def test_braces() -> None:
    assert expand_braces("a{08..10}-{x,y}") == ["a08-x", "a08-y", "a09-x", "a09-y", "a10-x", "a10-y"]
