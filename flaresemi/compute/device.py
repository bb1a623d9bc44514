"""Which device to run on."""

import math

import numpy as np
import torch

from flaresemi.errors import ConfigError
from flaresemi.machine import available_cores, processor_fact

#: What is copied to a GPU at a time. Chosen: one part is copied together while the one before travels.
_PART_BYTES = 16 << 20


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


def limit_threads(threads: int | None = None) -> None:
    """Lets torch compute with so many threads.

    Args:
        threads: None: no more than there are cores, as torch does not see a container's quota of them.
    """
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has computed all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array of at least two axes on a device, a copy of its own.

    On a GPU through memory that does not move (pinned), part by part, so that copying together and travel overlap;
    arrays that lie any other way than contiguous in memory are copied together anyway.

    Raises:
        torch.OutOfMemoryError: it does not fit there.
    """
    result = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, device=device)
    pinned = device.type == "cuda"
    rows = max(1, _PART_BYTES // max(1, array.itemsize * math.prod(array.shape[2:])))
    for source, target in zip(array, result, strict=True):
        for start in range(0, len(source), rows):
            part = source[start : start + rows]
            try:
                staged = torch.empty(part.shape, dtype=result.dtype, pin_memory=pinned)
            except RuntimeError:  # the system has no such memory to give
                pinned, staged = False, torch.empty(part.shape, dtype=result.dtype)
            staged.numpy()[...] = part
            # torch hands out pinned memory anew only when what was read from it has arrived.
            target[start : start + rows].copy_(staged, non_blocking=pinned)
    return result


def device_name(device: torch.device) -> str:
    """The processor's or card's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_fact("model name") or "cpu"
