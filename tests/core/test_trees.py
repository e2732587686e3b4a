"""Trees of tensors: one walk, one idea of how many samples a batch has."""

import pytest
import torch

from runner.core.trees import count_samples, iterate_tensors, map_tensors, slice_samples

BATCH = {"x": (torch.arange(10).reshape(5, 2), [torch.arange(5)]), "name": list("abcde"), "scale": torch.tensor(3.0)}


def test_each_tensor_is_mapped_and_the_rest_stays():
    mapped = map_tensors(lambda tensor: list(tensor.shape), BATCH)

    assert {"x": [[5, 2], [[5]]], "name": list("abcde"), "scale": []} == mapped
    assert [(5, 2), (5,), ()] == [tuple(tensor.shape) for tensor in iterate_tensors(BATCH)]


@pytest.mark.parametrize(
    ("batch", "count"),
    [(BATCH, 5), ({"scale": torch.tensor(1.0), "x": torch.zeros(4, 2)}, 4), ([["a", "b"], ["c", "d"]], 2), (None, 1)],
)
def test_the_samples_of_a_batch_are_counted_wherever_they_are(batch, count):
    assert count == count_samples(batch)


def test_a_slice_has_the_same_samples_of_every_member():
    """A number of the whole batch stays in every part."""
    part = slice_samples(BATCH, 5, slice(1, 3))

    assert [[2, 3], [4, 5]] == part["x"][0].tolist()
    assert [1, 2] == part["x"][1][0].tolist()
    assert (["b", "c"], 3.0) == (part["name"], part["scale"].item())
