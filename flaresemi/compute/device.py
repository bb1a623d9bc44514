"""Which device to run on."""

import torch

from flaresemi.errors import ConfigError
from flaresemi.machine import available_cores, processor_fact


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


def limit_threads() -> None:
    """Lets torch compute with no more threads than there are cores: it does not see a container's quota of them."""
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has computed all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The processor's or card's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_fact("model name") or "cpu"
