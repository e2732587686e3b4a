"""What it costs to look into a run: milliseconds of processor time a step, of the default experiment.

usage: python inside.py [OVERRIDE ...]
Evaluations and checkpoints of 40 epochs of 17 steps are part of it; the first 5 epochs, in which things are imported,
are not. Processor time, since what one look costs is less than what a busy machine does to a clock.
"""

import json
import sys
import time
from typing import Any

from runner.__main__ import main
from runner.train import loop

EPOCHS, WARM = 40, 5
STEPS = 17


def measured(*overrides: str) -> float:
    """Milliseconds a step."""
    marks: list[float] = []
    end_epoch = loop.end_epoch

    def marking(run: Any) -> None:
        marks.append(time.process_time())
        end_epoch(run)

    loop.end_epoch = marking
    status = main(["device.type=cpu", "device.threads=1", f"train.duration={EPOCHS}ep", *overrides])
    assert status == 0
    return 1000 * (marks[-1] - marks[WARM]) / (STEPS * (EPOCHS - 1 - WARM))


if __name__ == "__main__":
    print(json.dumps({"ms_per_step": round(measured(*sys.argv[1:]), 4)}))
