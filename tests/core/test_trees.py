"""Trees of tensors: one walk, one idea of how many samples a batch has."""

import pytest
import torch

from runner.core.trees import (
    SampleList,
    count_samples,
    iterate_tensors,
    map_in_kind,
    map_tensors,
    mark_samples,
    slice_samples,
)
from runner.data.per_sample import Collate

BATCH = {"x": (torch.arange(10).reshape(5, 2), [torch.arange(5)]), "name": list("abcde"), "scale": torch.tensor(3.0)}


def test_each_tensor_is_mapped_and_the_rest_stays():
    mapped = map_tensors(lambda tensor: list(tensor.shape), BATCH)

    assert {"x": [[5, 2], [[5]]], "name": list("abcde"), "scale": []} == mapped
    assert [(5, 2), (5,), ()] == [tuple(tensor.shape) for tensor in iterate_tensors(BATCH)]


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (BATCH, 5),
        ({"scale": torch.tensor(1.0), "x": torch.zeros(4, 2)}, 4),
        ([["a", "b"], ["c", "d"]], 2),
        ([torch.zeros(0, 2)], 0),
        (None, 1),
    ],
)
def test_the_samples_of_a_batch_are_counted_wherever_they_are(batch, count):
    assert count == count_samples(batch)


PICTURES = [[torch.zeros(3, 4 + n, 5) for n in range(8)], [{"boxes": torch.zeros(n, 4)} for n in range(8)]]


@pytest.mark.parametrize(
    "batch",
    [
        PICTURES,
        (tuple(PICTURES[0]), tuple(PICTURES[1])),
        [PICTURES[0], list(range(8))],
        [PICTURES[0], [torch.tensor(n) for n in range(8)]],
        [[torch.zeros(3, 5, 5)] * 8, [{"boxes": torch.zeros(3, 4)}] * 8],
    ],
)
def test_samples_that_are_not_stacked_are_counted_and_sliced(batch):
    """Pictures of several sizes with their targets, as torchvision's detectors take them; not the channels of one."""
    part = slice_samples(batch, count_samples(batch), slice(2, 5))

    assert count_samples(batch) == 8
    assert [[id(member) for member in group[2:5]] for group in batch] == [[*map(id, group)] for group in part]


def test_stacked_members_of_nested_samples_are_no_lists_of_samples():
    """`default_collate` makes such lists of samples ((a, b), (c, d))."""
    batch = [[torch.zeros(5, 2), torch.zeros(5, 3)], [torch.zeros(5), torch.zeros(5)]]
    part = slice_samples(batch, count_samples(batch), slice(0, 2))

    assert count_samples(batch) == 5
    assert [[(2, 2), (2, 3)], [(2,), (2,)]] == [[tuple(member.shape) for member in group] for group in part]


def test_a_slice_has_the_same_samples_of_every_member():
    """A number of the whole batch stays in every part."""
    part = slice_samples(BATCH, 5, slice(1, 3))

    assert [[2, 3], [4, 5]] == part["x"][0].tolist()
    assert [1, 2] == part["x"][1][0].tolist()
    assert (["b", "c"], 3.0) == (part["name"], part["scale"].item())


IMAGES = [torch.zeros(3, 4 + n, 5) for n in range(8)]


@pytest.mark.parametrize(
    ("batch", "count", "lists"),
    [
        ([IMAGES, IMAGES], 8, 2),
        ((IMAGES[:2], IMAGES[:2]), 2, 2),
        ({"image": IMAGES, "name": list("abcdefgh"), "boxes": [{"at": torch.zeros(0, 4)}] * 8}, 8, 2),
        ([torch.zeros(8, 2), IMAGES], 8, 1),
        ([IMAGES[:2], [{"at": torch.zeros(2, 4)}] * 2], 2, 2),
        ([IMAGES[:2], [torch.zeros(2)] * 2], 2, 2),
        ([{"at": torch.zeros(1, 4)}], 1, 1),
        ([torch.zeros(8, 2), list(range(8))], 8, 0),
        ([[torch.zeros(5, 2), torch.zeros(5, 3)], [torch.zeros(5), torch.zeros(5)]], 5, 0),
        ([[torch.zeros(2, 2), torch.zeros(2, 3)], [torch.zeros(2), torch.zeros(2)]], 2, 0),
    ],
)
def test_lists_of_one_thing_a_sample_are_told_by_the_number_of_samples(batch, count, lists):
    """Also images to images, whose first dimensions are all alike: three channels are no samples."""
    marked = map_tensors(torch.clone, map_in_kind(torch.clone, mark_samples(batch, count)))
    part = slice_samples(marked, count_samples(marked), slice(0, 1))
    members = [marked, *(marked.values() if isinstance(marked, dict) else marked)]

    assert count_samples(marked) == count
    assert sum(isinstance(member, SampleList) for member in members) == lists
    assert count_samples(part) == 1


def test_as_many_samples_as_channels_are_told_by_the_tensors_of_the_samples():
    """A list that was not stacked has the very tensors of the samples; a part of it has samples, and no channels."""
    samples = [(torch.full((3, 4, 5), float(n)), torch.full((3, 2), float(n))) for n in range(3)]
    batch, _ = Collate(lambda given: [[image for image, _ in given], [target for _, target in given]])([*samples])
    part = slice_samples(batch, count_samples(batch), slice(1, 2))

    assert count_samples(batch) == 3
    assert [[tuple(member.shape) for member in group] for group in part] == [[(3, 4, 5)], [(3, 2)]]
    assert (len(part[0]), float(part[0][0].mean())) == (1, 1.0)
