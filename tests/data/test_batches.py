"""Batches depend on (seed, epoch, index, transform name) and on nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, WeightedRandomSampler

from datasets.transforms import RandomShift
from runner.core import rng
from runner.data import batches, interfaces, samples, sharding, splitting, whole_dataset
from tests.support import Noise, read_epochs, same_batches

CPU = samples.Placement(torch.device("cpu"))


def tensors(count: int = 23) -> TensorDataset:
    """A dataset of images whose every pixel says which sample it is."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count))


class Hidden(Dataset[Any]):
    """A dataset with randomness of its own, of which no whole tensors can be had."""

    def __init__(self, count: int = 23) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3) + index, index


def split(
    dataset: Any, transforms: dict[str, Any] | None = None, name: str = "train", **settings: Any
) -> interfaces.Split:
    """A split with batches of four, shuffled in training."""
    settings = {"batch_size": 4, "shuffle": name == "train"} | settings
    limit = settings.pop("limit", None)
    return batches.make_split(
        dataset,
        None,
        samples.Pipeline(transforms or {}),
        samples.Stream(0, name),
        CPU,
        interfaces.LoaderSettings(**settings),
        limit=limit,
    )


def test_gathered_and_loaded_have_the_same_order() -> None:
    """Where nothing is random but the order, both ways of making batches give the same."""
    gathered, loaded = split(tensors()), split(tensors(), in_memory=False)

    assert gathered.plan.text.startswith("gathered")
    assert loaded.plan.text.startswith("sample by sample")
    assert same_batches(read_epochs(gathered), read_epochs(loaded))


def test_each_epoch_has_every_sample_once_in_another_order() -> None:
    """An epoch is a permutation, and no two are alike."""
    made = split(tensors())
    first, second = (torch.cat([batch[1] for batch in made.batches(epoch)]).tolist() for epoch in (0, 1))

    assert list(range(23)) == sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("settings", [{}, {"in_memory": False}, {"batch_sampler": [[7, 1], [3]]}, {"limit": 9}])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_indices_of_a_batch_are_those_of_its_samples(settings: dict[str, Any], *, wrapped: bool) -> None:
    """However batches are made, and under what changes whole batches or takes a share of them."""
    made = split(tensors(), **settings)
    told: interfaces.Split = batches.BatchTransforms(made, {}, samples.Stream(0, "train")) if wrapped else made
    told = sharding.ShardedBatches(told, sharding.Shard()) if wrapped else told
    expected = [batch[1].tolist() for batch in made.batches(1)]

    assert expected == [told.sample_indices(1, number) for number in range(len(expected))]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(persistent: bool) -> None:
    """The same batches bit for bit from this process and from two workers, hidden randomness included."""
    here = split(Hidden(), {"noise": Noise()})
    there = split(
        Hidden(),
        {"noise": Noise()},
        num_workers=2,
        options={"persistent_workers": persistent, "prefetch_factor": 3, "timeout": 60},
    )

    assert same_batches(read_epochs(here), read_epochs(there))


def test_a_start_at_any_batch_is_the_rest() -> None:
    """What comes from batch k on does not depend on the batches before, and they are not read."""
    for made in (split(tensors(), {"shift": RandomShift()}), split(Hidden(), {"noise": Noise()})):
        whole = [list(batch) for batch in made.batches(1)]
        for start in range(len(whole)):
            assert same_batches(whole[start:], [list(batch) for batch in made.batches(1, start)])


def test_making_batches_leaves_the_models_randomness_alone() -> None:
    """Loading draws nothing from the global generators."""
    for made in (split(tensors(), {"shift": RandomShift()}), split(Hidden(), {"noise": Noise()})):
        rng.seed_all(1)
        before = torch.rand(1)
        rng.seed_all(1)
        for _ in made.batches(0):
            pass
        assert torch.equal(before, torch.rand(1))


def test_inserting_a_transform_leaves_the_others_draws_alone() -> None:
    """A transform's numbers are keyed by its name, not by its place."""
    alone = read_epochs(split(Hidden(), {"noise": Noise()}))
    doubled = read_epochs(split(Hidden(), {"first": lambda x: torch.rand(3) * 0 + x, "noise": Noise()}))

    assert same_batches(alone, doubled)


def test_evaluation_is_the_same_every_time() -> None:
    """A random transform of an evaluation draws the same numbers at each evaluation."""
    made = split(Hidden(), {"noise": Noise()}, name="val")

    assert same_batches([list(b) for b in made.batches(0)], [list(b) for b in made.batches(0)])


def test_shift_is_a_crop_of_the_padded_image() -> None:
    """Each image is moved by its own numbers, and the batched form agrees with a plain slice of the padded image."""
    images, uniforms = torch.rand(50, 3, 5, 7), torch.rand(50, 2)
    shifted = RandomShift(2).batched(images, uniforms)
    padded = torch.nn.functional.pad(images, [2, 2, 2, 2])
    for image, (row, column), out in zip(padded, (uniforms * 5).long().tolist(), shifted, strict=True):
        assert torch.equal(out, image[:, row : row + 5, column : column + 7])


def test_sampler_is_keyed_by_the_epoch() -> None:
    """A sampler that draws from the global generator gives the same epoch each time, and leaves the generator alone."""
    made = split(tensors(), sampler=WeightedRandomSampler(torch.arange(23.0).tolist(), 40))
    torch.manual_seed(0)
    first = read_epochs(made)
    torch.manual_seed(1)

    assert same_batches(first, read_epochs(made))
    assert made.num_batches == 10
    assert 0 not in torch.cat([batch[1] for batch in first])


def test_drop_last_and_limit() -> None:
    """An incomplete last batch is left out if asked; a limit takes a fixed sample of the split."""
    assert [len(batch[1]) for batch in split(tensors(), drop_last=True).batches(0)] == [4] * 5
    assert [len(batch[1]) for batch in split(tensors(), drop_last=True, in_memory=False).batches(0)] == [4] * 5
    limited = split(tensors(), limit=6)
    assert limited.size == 6
    assert len({int(i) for epoch in (0, 1) for batch in limited.batches(epoch) for i in batch[1]}) == 6


def test_split_is_stratified_and_fixed() -> None:
    """Every class has its share in each split, no sample is in two, and the seed alone decides."""
    labels = torch.tensor([0] * 100 + [1] * 50)
    parts = splitting.split_indices(150, {"val": 0.2, "test": 0.1}, 0, labels)

    assert sorted(np.concatenate(list(parts.values()))) == list(range(150))
    assert [int((labels[parts[name]] == 1).sum()) for name in ("train", "val", "test")] == [35, 10, 5]
    assert all(
        np.array_equal(parts[n], splitting.split_indices(150, {"val": 0.2, "test": 0.1}, 0, labels)[n]) for n in parts
    )
    with pytest.raises(ValueError, match="the val split is empty"):
        splitting.split_indices(3, {"val": 0.1}, 0)


def test_whole_tensors_only_where_samples_are_rows() -> None:
    """A TensorDataset with a `__getitem__` of its own is read sample by sample; a Subset of a plain one is gathered."""

    class Doubled(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            return tuple(2 * member for member in super().__getitem__(index))

    assert whole_dataset.find_dataset_tensors(Doubled(torch.rand(3, 2))) is None
    rows = whole_dataset.find_dataset_tensors(Subset(tensors(), [5, 2]))
    assert rows is not None
    assert rows.tensors[1].tolist() == [5, 2]


def test_fingerprint_sees_one_changed_number() -> None:
    """Data that differ in one number, or splits in one sample, have other fingerprints."""
    one, two = tensors(), tensors()
    two.tensors[0][3, 0, 0, 0] += 1e-6
    prints = {split(one).fingerprint, split(two).fingerprint, split(one, limit=22).fingerprint}

    assert len(prints) == 3
    assert split(tensors()).fingerprint in prints


def test_a_broken_sample_is_named() -> None:
    """An error in a dataset names the split, the sample and the error."""

    class Broken(Hidden):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 7:
                raise OSError("no such file")
            return super().__getitem__(index)

    with pytest.raises(RuntimeError, match="train sample 7: OSError: no such file"):
        read_epochs(split(Broken()), 1)
