"""Made-up machines get the verdict that they deserve."""

import errno
import importlib.metadata
import os
import resource
import shutil
import sys
import types
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from flaresemi.compute import checkup
from flaresemi.compute.checkup import Check
from tests.made_kernel import KernelFiles

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


def test_a_problem_without_advice_is_none() -> None:
    with pytest.raises(ValueError, match="what to do"):
        Check(name="disk", value="full", verdict="problem")


@pytest.mark.parametrize(
    ("total", "free", "gpus", "verdict", "advice"),
    [
        (8 * GIB, 8 * GIB, 4, "ok", ""),
        (64 * 2**20, 64 * 2**20, 0, "note", "only several GPUs"),  # docker's default
        (64 * 2**20, 64 * 2**20, 1, "note", "only several GPUs"),
        (64 * 2**20, 64 * 2**20, 2, "problem", "--shm-size"),
        (8 * GIB, 4096, 0, "problem", "worker processes cannot start"),
    ],
)
def test_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: int, free: int, gpus: int, verdict: str, advice: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, total - free, free))
    found = checkup.shared_memory(tmp_path, gpu_count=gpus)
    assert found.verdict == verdict
    assert advice in found.advice
    assert checkup.shared_memory(tmp_path / "absent", gpu_count=gpus).verdict == "ok"  # not on every system


@pytest.mark.parametrize(
    ("soft", "verdict"), [(64, "problem"), (256, "note"), (4096, "ok"), (resource.RLIM_INFINITY, "ok")]
)
def test_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, verdict: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    found = checkup.open_files()
    assert found.verdict == verdict
    assert ("ulimit -n" in found.advice) == (verdict != "ok")


@pytest.mark.parametrize(("limit_gib", "verdict"), [(0.5, "problem"), (3, "note"), (64, "ok")])
def test_a_containers_memory_counts(
    kernel_files: KernelFiles, monkeypatch: pytest.MonkeyPatch, limit_gib: float, verdict: str
) -> None:
    machine = types.SimpleNamespace(total=128 * GIB, available=100 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: machine)
    kernel_files["/sys/fs/cgroup/memory.max"] = str(int(limit_gib * GIB))
    kernel_files["/sys/fs/cgroup/memory.current"] = "0"
    found = checkup.memory()
    assert found.verdict == verdict
    assert f"of {limit_gib:.1f} GiB" in found.value


def test_a_containers_cores_and_the_threads_on_them(kernel_files: KernelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [finding.verdict for finding in checkup.processor()] == ["ok", "ok", "ok"]
    kernel_files["/sys/fs/cgroup/cpu.max"] = "200000 100000"
    cores, threads, _ = checkup.processor()
    assert cores.verdict == threads.verdict == "note"
    assert "2 of 8" in cores.value
    assert "OMP_NUM_THREADS=2" in threads.advice


def test_packages_are_compared_with_the_declared_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "madeup-1.0.dist-info"
    info.mkdir()

    def declare(python: str, *required: str) -> list[Check]:
        lines = ["Metadata-Version: 2.1", "Name: madeup", "Version: 1.0", f"Requires-Python: {python}"]
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {each}" for each in required), ""]))
        return checkup.packages("madeup")

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    good = declare(">=3.11", "numpy>=1.0", "torch>=2.6", 'nowhere-to-be-found>=1; extra == "dev"')
    assert [finding.verdict for finding in good] == ["ok", "ok"]
    assert "all 2" in good[1].value
    python, packages = declare(">=99", "numpy>=1.0", "torch>=99", "nowhere-to-be-found>=1")
    assert python.verdict == packages.verdict == "problem"
    assert f"torch is {importlib.metadata.version('torch')}, needed is >=99" in packages.value
    assert packages.advice == "pip install 'torch>=99' 'nowhere-to-be-found>=1'"
    assert checkup.packages("nowhere-to-be-found")[0].verdict == "note"


def test_a_driver_that_torch_cannot_use_is_pointed_out(
    kernel_files: KernelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert checkup.gpus()[0].verdict == "ok"
    kernel_files["/proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat"
    (without_cuda,) = checkup.gpus()
    assert without_cuda.verdict == "note"
    assert "driver 535.104.05" in without_cuda.value
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    (unusable,) = checkup.gpus()
    assert unusable.verdict == "note"
    assert "--gpus all" in unusable.advice


def test_a_gpu_that_others_use(kernel_files: KernelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_name": "A100",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((4 if index else 39) * GIB, 40 * GIB))
    _, own, shared = checkup.gpus()
    assert (own.verdict, shared.verdict) == ("ok", "note")
    assert "4.0 of 40.0 GiB free" in shared.value


def test_a_device_that_torch_has_no_code_for_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> float:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(checkup, "conv3d_gflops", fail)
    found = checkup.convolution(torch.device("cpu"))
    assert found.verdict == "problem"
    assert "no kernel image" in found.value


@pytest.mark.parametrize(("gflops", "verdict"), [(2.0, "note"), (200.0, "ok")])
def test_bf16_is_measured_only_in_hardware(monkeypatch: pytest.MonkeyPatch, gflops: float, verdict: str) -> None:
    measured = []

    def speed(_: torch.device, dtype: torch.dtype, *, channels_last: bool) -> float:
        measured.append(dtype)
        return gflops

    monkeypatch.setattr(checkup, "conv3d_gflops", speed)
    monkeypatch.setattr(checkup, "cpu_has_bf16", lambda: False)
    assert checkup.convolution(torch.device("cpu")).verdict == verdict
    assert set(measured) == {torch.float32}
    monkeypatch.setattr(checkup, "cpu_has_bf16", lambda: True)
    checkup.convolution(torch.device("cpu"))
    assert set(measured) == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize(("free_gib", "verdict"), [(0.3, "problem"), (5, "note"), (500, "ok")])
def test_space_is_looked_at_where_the_workspace_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: float, verdict: str
) -> None:
    monkeypatch.setattr(checkup, "disk_speed", lambda _: (300.0, 10.0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, 0, free_gib * GIB))
    space, speed = checkup.disk(tmp_path / "not" / "there yet")
    assert space.verdict == verdict
    assert str(tmp_path) in space.value
    assert speed.verdict == "note"  # reading is slow


def test_a_disk_that_cannot_be_written_to_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> tuple[float, float]:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checkup, "disk_speed", refuse)
    found = checkup.disk(tmp_path)[1]
    assert found.verdict == "problem"
    assert "Read-only file system" in found.value


def test_writing_and_reading_leave_nothing(tmp_path: Path) -> None:
    write, read = checkup.disk_speed(tmp_path, mib=8)
    assert write > 0
    assert read > 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkup.disk_speed(tmp_path, mib=4)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_LONGEST_SECONDS", 0.0)
    monkeypatch.setattr(os, "urandom", bytes)
    assert checkup.disk_speed(tmp_path, mib=10**6) == (0.0, 0.0)


def test_a_convolution_of_known_size_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        def __init__(self, statement: str, globals: dict[str, object], num_threads: int) -> None:
            self.run = lambda: eval(statement, globals)
            assert num_threads == torch.get_num_threads()

        def blocked_autorange(self, min_run_time: float) -> types.SimpleNamespace:
            assert self.run().shape == (2, 32, 4, 4, 4)
            return types.SimpleNamespace(times=[3.0, 1.0, 2.0])

    monkeypatch.setattr("torch.utils.benchmark.Timer", Timer)
    monkeypatch.setattr(checkup, "_EDGE_VOXELS", 4)
    gflops = checkup.conv3d_gflops(torch.device("cpu"), torch.float32, channels_last=True)
    assert gflops == pytest.approx(2 * 27 * 32 * 32 * 2 * 4**3 / 1e9)  # the fastest took a second
