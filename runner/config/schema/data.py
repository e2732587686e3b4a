"""Keys of the data: `dataset`, `transform` and `loader`."""

from dataclasses import dataclass
from typing import Literal

from runner.config.schema.fields import Component, make_field


@dataclass
class Sample:
    """Member of a sample: tensor or array (`shape`, `dtype`) or PIL image (`mode`, `size`: width, height)."""

    # Shape of a tensor or array as the dataset gives it, before any transform: `[3, 32, 32]`.
    shape: list[int] | None = None
    # Number type of a tensor or array: `float32`, `uint8`, `int64`.
    dtype: str | None = None
    # Mode of a PIL image: `RGB`, or `L` for greyscale.
    mode: str | None = None
    # Width and height of a PIL image in pixels: `[32, 32]`.
    size: list[int] | None = None


@dataclass
class Download:
    """File that the data needs from the net; an existing one is neither fetched nor overwritten."""

    # Address of the file. In a list, each address is a mirror of the others.
    url: str | list[str] = make_field(regex="https?://[!-.0-~]+/[!-~]+")
    # SHA-256 of the file, 64 hexadecimal digits. A file with another hash is not used.
    sha256: str = make_field(regex="[0-9a-f]{64}")
    # File to write, in a folder below the working directory: `data/images.zip`.
    to: str = make_field()
    # Largest size of the file in bytes; a larger one is refused.
    size: int | None = make_field(None, at_least=1)
    # Folder to unpack the archive into (for a lone `.gz` the file it becomes). Nothing is fetched where it exists.
    unpack: str | None = None
    # Most files and folders that the archive may hold.
    members_limit: int = make_field(2_000_000, at_least=1)
    # Most GiB that the archive may become when it is unpacked.
    size_limit: float = make_field(1024.0, above=0)
    # Most times its own size that the archive may become when it is unpacked.
    ratio_limit: float = make_field(200.0, at_least=1)


@dataclass
class Dataset:
    # Files to fetch before the datasets are built, by a name of your own, in order.
    downloads: dict[str, Download | None] = make_field({})
    # Training data: your dataset class and its arguments.
    train: Component | None = make_field(None, slot="dataset")
    # Validation data: evaluated while training, and chooses the best checkpoint.
    val: Component | None = make_field(None, slot="dataset")
    # Test data: evaluated once, at the end.
    test: Component | None = make_field(None, slot="dataset")
    # Optimizer steps that make one epoch, for a step that needs no data (its batches are None).
    steps_per_epoch: int | None = make_field(None, at_least=1)
    # Further datasets to validate on, by a name of your own. Their metrics are `NAME/accuracy` and so on.
    evaluate: dict[str, Component | None] = make_field({}, slot="dataset")
    # One dataset to split into training, validation and test data by `val_fraction` and `test_fraction`.
    source: Component | None = make_field(None, slot="dataset")
    # Share of `source` that becomes the validation data: `0.1`.
    val_fraction: float = make_field(0.0, at_least=0, below=1)
    # Share of `source` that becomes the test data: `0.1`.
    test_fraction: float = make_field(0.0, at_least=0, below=1)
    # Seed of the split. It is not `seed`, so a sweep over `seed` never changes the test data.
    split_seed: int = make_field(0, at_least=0)
    # Keep the proportions of the classes of `source` in each split.
    stratify: bool = False
    # Number of equal parts for cross-validation: `source` without its test data is divided into so many.
    folds: int | None = make_field(None, at_least=2)
    # Number of the part that is the validation data, from 0. `-m dataset.fold=0,1,2` trains with each.
    fold: int | None = make_field(None, at_least=0)
    # Number of classes. A class index that is too large becomes a clear error before the loss sees it.
    classes: int | None = make_field(None, at_least=1)
    # The loss's `weight` for each class: a list, or `balanced` to compute it from how often each class occurs.
    class_weights: Literal["balanced"] | list[float] | None = None
    # What one raw sample looks like, so that a run can be checked before its data is there: the input (the target is
    # then a class index), or every member by position or by name.
    sample: Sample | list[Sample] | dict[str, Sample] | None = None
    # Most samples to take of each split, for debugging.
    limit: int | None = make_field(None, at_least=1)


@dataclass
class Transform:
    # What the transforms are applied to: the input, the target, or the whole sample.
    on: Literal["input", "target", "sample"] = "input"
    # Transforms of the training data, by a name of your own, in order. null removes one.
    train: dict[str, Component | None] = make_field({}, slot="transform")
    # Transforms of the validation and test data, by a name of your own, in order. null removes one.
    eval: dict[str, Component | None] = make_field({}, slot="transform")
    # Test-time augmentation: a function of the model's input in an evaluation that gives several inputs, or pairs of a
    # weight and an input. The model's outputs for them are averaged.
    views: Component | None = make_field(None, slot="views")
    # Transforms of whole training batches, by a name of your own, in order: MixUp, CutMix.
    batch: dict[str, Component | None] = make_field({}, slot="transform")


@dataclass
class EvalLoader:
    """Loader settings of validation and test; null means the value of training."""

    # Samples in a batch of an evaluation. null: as many as in training.
    batch_size: int | None = make_field(256, at_least=1)
    # Processes that load samples for an evaluation. null: as many as in training.
    num_workers: int | None = make_field(None, at_least=0)


@dataclass
class Loader:
    # Samples in a batch of each process. null: every sample of the dataset is a whole batch already.
    batch_size: int | None = make_field(64, at_least=1)
    # Processes that load samples beside training. 0: this process loads them itself.
    num_workers: int = make_field(0, at_least=0)
    # Load the whole dataset into memory once and transform whole batches, which is much faster for small data. auto:
    # where it fits and every transform can do it.
    in_memory: bool | Literal["auto"] = "auto"
    # Most GiB that `in_memory: auto` loads.
    in_memory_limit: float = make_field(4.0, above=0)
    # Draw a new order of the training data for each epoch.
    shuffle: bool = True
    # Leave out the last training batch of an epoch where it is incomplete.
    drop_last: bool = False
    # Copy batches into page-locked memory, from which a GPU reads faster. auto: where batches go to a CUDA device.
    pin_memory: bool | Literal["auto"] = "auto"
    # Not available: batches are pinned for the device that trains.
    pin_memory_device: str = make_field("", unbuilt="is deprecated by PyTorch: batches are pinned for `device.type`")
    # Sampler of the training data in place of `shuffle`: a class that yields indices.
    sampler: Component | None = make_field(None, slot="sampler")
    # Sampler that yields whole batches of indices, in place of `batch_size`, `shuffle`, `sampler` and `drop_last`.
    batch_sampler: Component | None = make_field(None, slot="sampler")
    # Function that makes a batch of a list of samples, for example to pad texts. null: PyTorch's own stacks them.
    collate_fn: Component | None = make_field(None, slot="function")
    # Function to call with a worker's number when the worker starts.
    worker_init_fn: Component | None = make_field(None, slot="function")
    # How Python starts the workers. null: as PyTorch does on this system.
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    # Batches that each worker loads ahead. null: 2.
    prefetch_factor: int | None = make_field(None, at_least=1)
    # Keep the workers from one epoch to the next, rather than start new ones.
    persistent_workers: bool = False
    # Batches always come in order: else which worker is faster would change the result.
    in_order: bool = make_field(
        True, unbuilt="must be true: the order of batches must not depend on the workers' speed"
    )
    # Seconds to wait for a worker's batch before the run fails; 0 waits for ever.
    timeout: float = make_field(60, at_least=0)
    # What a sample that cannot be read does: end the run, or be left out and listed in `bad_samples.jsonl`.
    bad_samples: Literal["error", "skip"] = "error"
    # Most samples of a split to leave out with `bad_samples: skip`; with more the run ends all the same.
    bad_samples_limit: int = make_field(100, at_least=1)
    # Other settings for validation and test.
    eval: EvalLoader = make_field(EvalLoader)
