"""What every plain script has again beside its loop: a log, checkpoints that go on, an end by a signal, arguments.

A script by hand that does what a run does would have these lines in it; so they count as its own.
"""

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch


class Plain:
    """The log and the checkpoints of one training."""

    def __init__(self, folder, every=1):
        self.folder, self.every = Path(folder), every
        self.folder.mkdir(parents=True, exist_ok=True)
        self.losses, self.values, self.best, self.asked = [], {}, None, False
        self.begun = time.perf_counter()

    def listen(self):
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))

    def log(self, loss, **values):
        self.losses.append(loss.item())
        if not np.isfinite(self.losses[-1]):
            message = f"the loss became {self.losses[-1]} at step {len(self.losses)}"
            raise FloatingPointError(message)
        if len(self.losses) % self.every == 0:
            self.write({"train/loss": self.losses[-1], **values})

    def write(self, values):
        self.values |= values
        line = {"step": len(self.losses), "seconds": time.perf_counter() - self.begun, **values}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, parts, epoch, batch, objective=None):
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"losses": self.losses, "epoch": epoch, "batch": batch, "best": self.best}
        state |= {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        temporary = self.folder / "last.pt.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / "last.pt")  # noqa: PTH105  as scripts do
        if objective is not None and (self.best is None or objective > self.best):
            self.best = objective
            torch.save(state, self.folder / "best.pt")

    def restore(self, parts):
        file = self.folder / "last.pt"
        if not file.exists():
            return 0, 0
        state = torch.load(file, weights_only=False)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        self.losses, self.best = state["losses"], state["best"]
        return state["epoch"], state["batch"]

    def finish(self, model):
        result = {"status": "completed", "steps": len(self.losses), "best": self.best, **self.values}
        (self.folder / "result.json").write_text(json.dumps(result))
        torch.save(model.state_dict(), self.folder / "weights.pt")


def read_arguments(**defaults):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="outputs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=50)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    np.random.seed(arguments.seed)
    random.seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return arguments
