"""Schema of every key that the runner reads: type, rule, comment and its only default.

A component (a `_target_` with its own arguments) has no schema here: the callable's own signature is its schema.
Plain Python (no torch, no OmegaConf); `runner.config.check` interprets it. `help KEY`, `why KEY` and the editors show
the comment of a field, so each says what its key does to someone who has never seen it. Read `config.py` first.
"""

from runner.config.schema.config import Config, OnEvent
from runner.config.schema.data import Dataset, Download, EvalLoader, Loader, Sample, Transform
from runner.config.schema.fields import Component, Duration, Pattern, make_field
from runner.config.schema.log import Log, LogHook, Profile, Statistic
from runner.config.schema.model import (
    Expect,
    Freeze,
    FreezeSet,
    Init,
    InitRule,
    ParamGroup,
    Pretrained,
    Rename,
    ShapeMismatch,
)
from runner.config.schema.sweep import Search, Sweep
from runner.config.schema.train import (
    PROCESSES,
    Average,
    Derived,
    Device,
    MemberOptimizer,
    Scheduler,
    StopWhen,
    Train,
)

__all__ = [
    "PROCESSES",
    "Average",
    "Component",
    "Config",
    "Dataset",
    "Derived",
    "Device",
    "Download",
    "Duration",
    "EvalLoader",
    "Expect",
    "Freeze",
    "FreezeSet",
    "Init",
    "InitRule",
    "Loader",
    "Log",
    "LogHook",
    "MemberOptimizer",
    "OnEvent",
    "ParamGroup",
    "Pattern",
    "Pretrained",
    "Profile",
    "Rename",
    "Sample",
    "Scheduler",
    "Search",
    "ShapeMismatch",
    "Statistic",
    "StopWhen",
    "Sweep",
    "Train",
    "Transform",
    "make_field",
]
