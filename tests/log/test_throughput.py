import time
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.log.throughput import DataWaitTimer, count_flops, find_peak_flops, measure_memory
from runner.model.meta import copy_to_meta
from runner.model.summary import build_model_table
from runner.train.monitor import ThroughputMeter


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "tf32", 494e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA L4", "fp16", 121e12),
        ("NVIDIA L40S", "fp16", 362e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("Tesla T4", "fp16", 65e12),
        ("Tesla T4", "bf16", None),
        ("NVIDIA A1000", "fp32", None),
        ("cpu", "fp32", None),
    ],
)
def test_the_peak_of_a_device_by_its_name(name, precision, peak):
    assert find_peak_flops(name, precision) == (peak and pytest.approx(peak))


def test_flops_of_a_forward_are_twice_the_tables_multiply_accumulates():
    model = copy_to_meta(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)))
    inputs = torch.empty(5, 3, 8, 8, device="meta")

    flops, samples = count_flops(lambda: {"output": model(inputs), "size": 5})

    assert (flops, samples) == (2 * build_model_table(model, inputs).total.macs, 5)


def test_waiting_is_what_the_batches_take_and_not_the_step():
    def slow():
        for batch in range(3):
            time.sleep(0.02)
            yield batch

    waiting, got = DataWaitTimer(), []
    for batch in waiting.timed(slow()):
        got.append(batch)
        time.sleep(0.03)

    assert got == [0, 1, 2]
    assert 0.06 <= waiting.seconds < 0.09


def test_what_is_measured_is_of_the_time_since_the_last_line():
    waiting = DataWaitTimer()
    measured = ThroughputMeter(
        torch.device("cpu"), throughput=True, memory=True, waiting=waiting, mfu=True, peak_flops=1e6, flops=100.0
    )
    measured.mark = (10, 64.0, 1.0)
    waiting.seconds = 0.5
    first = measured.scalars(20, 704, 3.0)
    waiting.seconds = 0.25
    second = measured.scalars(30, 100, 4.0)

    assert first.pop("memory/resident_gib") > 0.1
    assert first == {
        "throughput/steps_per_second": 5.0,
        "throughput/samples_per_second": 320.0,
        "throughput/mfu": pytest.approx(0.032),
        "throughput/data_wait": 0.25,
    }
    assert (second["throughput/steps_per_second"], second["throughput/data_wait"]) == (10.0, 0.25)


def test_memory_of_this_process_is_what_the_system_says():
    held = torch.ones(2**28, dtype=torch.uint8)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 2**30

    assert measure_memory(torch.device("cpu"))["memory/resident_gib"] == pytest.approx(peak, rel=0.05)
    assert held.sum() >= 0
