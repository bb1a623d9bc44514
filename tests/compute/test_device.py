import os

import pytest
import torch

from flaresemi.compute import device
from flaresemi.compute.device import available_cores, device_name, free_memory_gib, select_device
from flaresemi.errors import ConfigError


@pytest.fixture
def kernel_files(monkeypatch):
    """Puts made-up contents in place of the kernel's files; what is not named does not exist."""
    contents = {}

    def first_line(path):
        return contents.get(path, "").split("\n")[0].strip()

    def counters(path):
        rows = [line.split() for line in contents.get(path, "").splitlines()]
        return {row[0]: int(row[1]) for row in rows}

    monkeypatch.setattr(device, "first_line", first_line)
    monkeypatch.setattr(device, "counters", counters)
    return contents


def test_devices_that_exist():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_name(torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "", "cpu:x"])
def test_devices_that_do_not(name):
    with pytest.raises(ConfigError, match=r"device"):
        select_device(name)


def test_the_real_machine_has_cores_and_memory():
    assert 1 <= available_cores() <= os.cpu_count()
    assert 0 < free_memory_gib() < 1e5


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_a_containers_quota_of_cores_is_respected(kernel_files, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    kernel_files["/sys/fs/cgroup/cpu.max"] = quota
    assert available_cores() == expected


def test_a_containers_limit_counts_and_its_cached_files_do_not(kernel_files):
    kernel_files["/proc/meminfo"] = f"MemAvailable: {100 * 2**20} kB"
    assert free_memory_gib() == 100
    kernel_files["/sys/fs/cgroup/memory.max"] = "max"
    assert free_memory_gib() == 100
    kernel_files["/sys/fs/cgroup/memory.max"] = str(16 * 2**30)
    kernel_files["/sys/fs/cgroup/memory.current"] = str(15 * 2**30)
    assert free_memory_gib() == 1
    kernel_files["/sys/fs/cgroup/memory.stat"] = f"anon {5 * 2**30}\ninactive_file {10 * 2**30}"
    assert free_memory_gib() == 11
    kernel_files["/proc/meminfo"] = f"MemAvailable: {4 * 2**20} kB"
    assert free_memory_gib() == 4
