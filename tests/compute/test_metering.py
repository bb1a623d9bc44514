import resource
import sys
import time
import types

import numpy as np
import pytest
import torch

from flaresemi.compute.device import available_cores
from flaresemi.compute.metering import Meter, Sample, peak_rss_mib, summed_up
from tests.made_kernel import KernelFiles

CPU = torch.device("cpu")


def sample(seconds: float, cpu: float, gpu: float | None = None, rss: float = 100.0) -> Sample:
    return Sample(seconds=seconds, cpu_percent=cpu, rss_mib=rss, gpu_mib=gpu)


def test_areas_weigh_each_sample_by_its_time() -> None:
    cost = summed_up((sample(0.1, 50, 3048), sample(0.3, 100, 2000, rss=300), sample(0.4, 0, 2148)))
    assert cost.seconds == 0.4
    assert cost.cpu_area == pytest.approx(0.1 * 50 + 0.2 * 100)
    assert cost.gpu_area == pytest.approx(0.1 * 1000 + 0.1 * 100)  # what is below 2048 MiB is free
    assert (cost.peak_rss_mib, cost.peak_gpu_mib) == (300, 3048)


def test_without_a_gpu_there_is_no_gpu_area() -> None:
    cost = summed_up((sample(0.1, 50),))
    assert cost.gpu_area is None
    assert cost.peak_gpu_mib is None


def test_idle_time_costs_no_processor_and_work_does() -> None:
    with Meter(CPU) as idle:
        time.sleep(0.35)
    with Meter(CPU) as busy:
        until = time.process_time() + 0.35
        while time.process_time() < until:
            sum(range(1000))
    assert idle.cost.seconds == pytest.approx(0.35, abs=0.3)
    assert len(idle.cost.samples) >= 3
    assert idle.cost.cpu_area < 0.5 * busy.cost.cpu_area
    # 0.35 s of one core are 35 percent · s when there is one, and fewer when there are more.
    assert busy.cost.cpu_area == pytest.approx(35 / available_cores(), rel=0.25)


def test_memory_that_was_held_is_seen() -> None:
    with Meter(CPU) as meter:
        held = np.ones(64 * 2**20, np.uint8)
        time.sleep(0.25)
        del held
    first, peak = meter.cost.samples[0].rss_mib, meter.cost.peak_rss_mib
    assert peak >= 64
    assert peak >= first


def test_an_error_inside_is_not_swallowed() -> None:
    with pytest.raises(ValueError, match="inside"), Meter(CPU):
        raise ValueError("inside")


@pytest.mark.parametrize(("system", "unit_bytes"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_where_the_kernel_writes_no_files(
    kernel_files: KernelFiles, monkeypatch: pytest.MonkeyPatch, system: str, unit_bytes: int
) -> None:
    assert 50 < peak_rss_mib() < 1e5
    held = types.SimpleNamespace(ru_maxrss=300 * 2**20 // unit_bytes)
    monkeypatch.setattr(resource, "getrusage", lambda _: held)
    monkeypatch.setattr(sys, "platform", system)
    assert peak_rss_mib() == 300
    kernel_files["/proc/self/status"] = "VmHWM:\t  204800 kB\n"
    assert peak_rss_mib() == 200
