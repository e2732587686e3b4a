"""The clock of the data: who is told the epoch, in what order, and which step a batch is for."""

import torch
from torch.utils.data import BatchSampler, ConcatDataset, Dataset, Sampler, Subset

from runner.core.progress import Moment, TrainingProgress
from runner.data.timing import DataClock, find_epoch_setters


class Told(Dataset):
    def __init__(self, count=6):
        self.count, self.calls = count, []

    def set_epoch(self, epoch):
        self.calls.append((epoch, torch.rand(()).item()))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index


class Outer(Told):
    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset


class Order(Sampler):
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(range(6))


def test_what_is_wrapped_is_found_once_innermost_first():
    first, second = Told(), Told()
    outer = Outer(first)
    order = Order()

    assert find_epoch_setters(ConcatDataset([Subset(outer, [0]), second, Subset(first, [1])])) == [first, outer, second]
    assert find_epoch_setters(BatchSampler(order, 2, drop_last=False)) == [order]
    assert find_epoch_setters(Subset([1, 2], [0])) == []


def test_a_circle_of_wrappers_ends():
    outer = Outer(None)
    outer.dataset = outer
    assert find_epoch_setters(outer) == [outer]


def test_an_epoch_is_told_once_and_its_draws_are_keyed():
    one, other = Told(), Told()
    clock = DataClock(seed=3)
    clock.follow(Subset(one, [0]))
    clock.follow(one)  # of another split
    for when in ((0, 0), (0, 1), (1, 6), (0, 2)):
        clock.set(when)
    torch.manual_seed(99)
    again = DataClock(seed=3)
    again.follow(other)
    again.set((1, 0))

    assert [epoch for epoch, _ in one.calls] == [0, 0, 1, 0]
    assert one.calls[2] == other.calls[1]


def test_the_step_of_a_batch_counts_what_was_left_out_and_micro_batches():
    run = TrainingProgress()
    run.at = Moment(epoch=2, step=23, batch=4, left_out=[[2, 1, 0], [2, 3, 1], [1, 0, 0], [2, 5, 0]])
    clock = DataClock(run, accumulate=2)
    first = clock.find_first_step(2)

    assert first == 20  # one of the four batches was no step
    assert [clock.when("train", 2, first, batch) for batch in (0, 1, 2, 5)] == [(2, 20), (2, 20), (2, 21), (2, 22)]
    assert clock.when("val", 0, 0, 3) == (2, 23)
