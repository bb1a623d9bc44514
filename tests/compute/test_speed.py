import os
import types
from pathlib import Path

import pytest
import torch

from flaresemi.compute import speed
from flaresemi.compute.speed import conv3d_gflops, disk_speed


def test_writing_and_reading_leave_nothing(tmp_path: Path) -> None:
    write, read = disk_speed(tmp_path, mib=8)
    assert write > 0
    assert read > 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        disk_speed(tmp_path, mib=4)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_LONGEST_SECONDS", 0.0)
    monkeypatch.setattr(os, "urandom", bytes)
    assert disk_speed(tmp_path, mib=10**6) == (0.0, 0.0)


def test_a_convolution_of_known_size_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(speed, "time", types.SimpleNamespace(perf_counter=lambda: next(now)))  # a second a look
    monkeypatch.setattr(speed, "_EDGE_VOXELS", 4)
    gflops = conv3d_gflops(torch.device("cpu"), torch.float32, channels_last=True, seconds=0.5)
    assert gflops == pytest.approx(2 * 27 * 32 * 32 * 2 * 4**3 / 1e9)
