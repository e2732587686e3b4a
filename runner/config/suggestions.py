"""Nearest right names: by edit distance for typing errors, by a table for other tools' names."""

import re
from collections.abc import Iterable

LONGEST = 200  # characters of a name for which the nearest one is looked for


# What people write who come from another tool, and what it is called here.
ELSEWHERE = {
    "epochs": "train.duration",
    "max_epochs": "train.duration",
    "num_epochs": "train.duration",
    "n_epochs": "train.duration",
    "train.epochs": "train.duration",
    "train.max_epochs": "train.duration",
    "train.num_epochs": "train.duration",
    "trainer.max_epochs": "train.duration",
    "train.steps": "train.duration",
    "train.max_steps": "train.duration",
    "max_steps": "train.duration",
    "train.patience": "train.early_stop",
    "train.early_stopping": "train.early_stop",
    "train.monitor": "train.objective",
    "train.grad_clip": "train.clip_norm",
    "train.gradient_clip_val": "train.clip_norm",
    "train.accumulate_grad_batches": "train.accumulate",
    "train.gradient_accumulation_steps": "train.accumulate",
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "train.lr": "optimizer.lr",
    "train.learning_rate": "optimizer.lr",
    "optim": "optimizer",
    "criterion": "loss",
    "net": "model",
    "network": "model",
    "data": "dataset",
    "datamodule": "dataset",
    "trainer": "train",
    "training": "train",
    "logger": "log",
    "logging": "log",
    "callbacks": "train",
    "lr_scheduler": "scheduler",
    "wd": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay",
    "momentum": "optimizer.momentum",
    "workers": "loader.num_workers",
    "loader.workers": "loader.num_workers",
    "n_workers": "loader.num_workers",
    "dataloader": "loader",
    "bs": "loader.batch_size",
    "random_seed": "seed",
    "manual_seed": "seed",
    "gpu": "device.type",
    "gpus": "device.type",
    "accelerator": "device.type",
    "device.name": "device.type",
    "device.kind": "device.type",
    "device.amp": "device.precision",
    "amp": "device.precision",
    "fp16": "device.precision",
    "resume": "run",
    "checkpoint": "run",
    "resume_from": "run",
    "ckpt_path": "run",
    "transforms": "transform",
    "augmentation": "transform",
    "aug": "transform",
    "transform.val": "transform.eval",
    "transform.test": "transform.eval",
    "log.freq": "log.every",
    "log.interval": "log.every",
    "log_every_n_steps": "log.every",
    "log.tb": "log.tensorboard",
    "train.eval_every": "train.evaluate_every",
    "train.val_every": "train.evaluate_every",
    "train.save_every": "train.checkpoint_every",
    "train.keep_last": "train.keep",
    "experiment_name": "name",
    "run_name": "name",
    "dataset.valid": "dataset.val",
    "dataset.validation": "dataset.val",
    "loss_fn": "loss",
    "exp": "experiment",
    "epoch": "train.duration",
    "steps": "train.duration",
    "iterations": "train.duration",
    "train_batch_size": "loader.batch_size",
    "batch": "loader.batch_size",
    "device_ids": "device.type",
    "precision": "device.precision",
    "bf16": "device.precision",
    "mixed_precision": "device.precision",
    "arch": "model",
    "pretrained.strict=false": "pretrained.strategy=partial",
    "pretrained.strict=true": "pretrained.strategy=full",
    "pretrained.ignore_mismatched_sizes=true": "pretrained.strategy=partial",
    "pretrained.strict": "pretrained.strategy",
    "hydra/sweeper=optuna": "sweep=optuna_asha",
    "hydra/launcher=joblib": "sweep.slots",
}


def compute_distance(a: str, b: str, limit: int) -> int:
    """Return the edit distance of two names; `limit + 1` where it certainly exceeds `limit`.

    Optimal string alignment: the restricted Damerau-Levenshtein distance.
    """
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def find_nearest(name: str, known: Iterable[str]) -> str:
    """Return the nearest known name; empty where more than a third of the letters differ."""
    if len(name) > LONGEST:
        return ""
    limit = max(1, len(name) // 3)

    def rank(other: str) -> tuple[float, int, int, str]:
        plain = compute_distance(name.lower().replace("-", "_"), other.lower(), limit)
        away = min(compute_distance(name, other, limit), plain + 0.5)
        # Of equally near ones the longer (a letter was left out), then the one with the longer common start.
        return away, -len(other), -_count_common_start(name, other), other

    best = min((rank(other) for other in known if other != name), default=None)
    return best[3] if best and best[0] <= limit else ""


def _count_common_start(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def format_suggestion(name: str) -> str:
    """Format the remedy that suggests a name; empty for no name."""
    return f"did you mean `{name}`?" if name else ""


def translate_name(key: str) -> str:
    """Translate a key or choice of another tool; empty where no translation is known."""
    group, _, option = key.partition("=")
    if group == "device" and re.fullmatch(r"cuda:\d+", option):
        return f"device.type={option}"
    return ELSEWHERE.get(key, "")
