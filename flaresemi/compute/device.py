"""Which device to run on, and how much of it there is."""

import os

import torch

from flaresemi.errors import ConfigError


def select_device(name: str = "auto") -> torch.device:
    """Resolves 'auto', 'cpu', 'cuda' or 'cuda:1' to a device that exists.

    Raises:
        ConfigError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'", fix="use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device '{name}' is not there ({torch.cuda.device_count()} GPU(s) visible)", fix="use cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{name}' is not supported", fix="use auto, cpu, cuda or cuda:N")
    return device


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, at most the container's quota; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def free_memory_gib() -> float:
    """Main memory that can be taken now without swapping, GiB; respects the container's limit where one is set."""
    available = _machine_memory_gib()
    limit, used = first_line("/sys/fs/cgroup/memory.max"), first_line("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        # Cached files count as used, but the kernel gives them up before it refuses memory.
        cached = counters("/sys/fs/cgroup/memory.stat").get("inactive_file", 0)
        available = min(available, (int(limit) - int(used) + cached) / 2**30)
    return max(available, 0.0)


def total_memory_gib() -> float:
    """Main memory of the machine, or the container's limit where one is set, GiB."""
    kib, limit = counters("/proc/meminfo").get("MemTotal:"), first_line("/sys/fs/cgroup/memory.max")
    total = _pages_gib() if kib is None else kib / 2**20
    return min(total, int(limit) / 2**30) if limit.isdigit() else total


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has computed all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The processor's or card's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "cpu"


def _machine_memory_gib() -> float:
    kib = counters("/proc/meminfo").get("MemAvailable:")
    if kib is not None:
        return kib / 2**20
    return _pages_gib()


def _pages_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def first_line(path: str) -> str:
    """First line of one of the kernel's files; empty where there is no such file."""
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except OSError:
        return ""


def counters(path: str) -> dict[str, int]:
    """The `name number` lines of one of the kernel's files; empty where there is no such file."""
    try:
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
