import gzip
import json

import pytest
import torch

from runner.log.profiler import StepProfiler


@pytest.mark.filterwarnings("ignore:.*")  # the profiler's own, about what it does without a GPU
@pytest.mark.parametrize(("repeat", "names"), [(1, ["steps_13_14"]), (2, ["steps_13_14", "steps_17_18"])])
def test_a_trace_has_the_operators_of_its_steps(tmp_path, repeat, names):
    said = []
    profile = StepProfiler(tmp_path, torch.device("cpu"), wait=1, warmup=1, active=2, repeat=repeat)
    profile.start(10)
    step = 10
    while profile.left:
        torch.mm(torch.rand(8, 8), torch.rand(8, 8))
        step += 1
        profile.advance(step, said.append)
    profile.advance(step + 1, said.append)

    files = sorted((tmp_path / "profile").iterdir())
    assert [file.name for file in files] == [f"{name}.pt.trace.json.gz" for name in names]
    for file in files:
        with gzip.open(file) as trace:
            events = json.load(trace)["traceEvents"]
        assert sum(event["name"] == "aten::mm" for event in events) == 2
        assert (
            sum(event["name"].startswith("ProfilerStep#") for event in events if event.get("cat") == "user_annotation")
            == 2
        )
    (text,) = said
    assert "aten::mm" in text
    assert str(files[-1]) in text


@pytest.mark.filterwarnings("ignore:.*")
def test_training_that_ends_before_its_trace_says_so(tmp_path):
    said = []
    profile = StepProfiler(tmp_path, torch.device("cpu"), wait=5, warmup=1, active=2)
    profile.start(0)
    profile.advance(1, said.append)
    profile.stop(said.append)

    assert said == ["log.profile: training ended before there was a step to trace"]
    assert not profile.left
