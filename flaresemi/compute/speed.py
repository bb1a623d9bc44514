"""How fast this machine convolves, and how fast it writes and reads a file."""

import os
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from flaresemi.compute.device import synchronize

#: The measured layer: like one in the middle of a U-Net, small enough for a laptop. Chosen.
_CHANNELS, _EDGE_VOXELS, _BATCH = 32, 40, 2

_BLOCK_BYTES = 4 * 2**20
_LONGEST_SECONDS = 2.0


def conv3d_gflops(device: torch.device, dtype: torch.dtype, *, channels_last: bool, seconds: float = 0.5) -> float:
    """Operations per second of a 3×3×3 convolution, 10⁹/s; a multiplication with its addition counts 2.

    Args:
        dtype: float32, or what the device computes fast.
        channels_last: The memory layout of features and weights.
        seconds: About how long to try; the fastest of the tries counts, so that a busy moment does not.

    Raises:
        RuntimeError: this torch cannot compute on the device.
    """
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    weight, features = (
        torch.randn(shape, device=device).to(dtype, memory_format=layout)
        for shape in ((_CHANNELS, _CHANNELS, 3, 3, 3), (_BATCH, _CHANNELS, *(_EDGE_VOXELS,) * 3))
    )
    operations = 2 * 27 * _CHANNELS**2 * _BATCH * _EDGE_VOXELS**3
    fastest, until = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        F.conv3d(features, weight, padding=1)
        while fastest == float("inf") or time.perf_counter() < until:
            synchronize(device)
            start = time.perf_counter()
            F.conv3d(features, weight, padding=1)
            synchronize(device)
            fastest = min(fastest, time.perf_counter() - start)
    return operations / fastest / 1e9


def disk_speed(folder: Path, mib: int = 64) -> tuple[float, float]:
    """Sequential writing, to the end of its way to the disk, and reading, MB/s.

    The file has no name where the system can do that, and in any case is gone afterwards, also when the process is
    killed. On a slow disk less than `mib` is written.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    block = os.urandom(_BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start, written = time.perf_counter(), 0
        while written < mib * 2**20 and time.perf_counter() - start < _LONGEST_SECONDS:
            written += file.write(block)
        os.fsync(file.fileno())
        writing = time.perf_counter() - start
        if hasattr(os, "posix_fadvise"):  # or the copy in main memory would be read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < _LONGEST_SECONDS and (found := file.read(_BLOCK_BYTES)):
            count += len(found)
        reading = time.perf_counter() - start
    return written / writing / 1e6, count / reading / 1e6
