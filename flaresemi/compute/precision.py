"""Mixed precision: where it is fast, and how gradients are scaled under fp16."""

import contextlib
from typing import Literal

import torch

from flaresemi.machine import processor_fact

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


class Precision:
    """Autocast and gradient scaling for one device.

    Attributes:
        name: `fp32`, `bf16` or `fp16`, resolved.
        dtype: What autocast computes in; None for fp32.
    """

    def __init__(self, device: torch.device, name: PrecisionName = "auto") -> None:
        self.device = device
        self.name = _choose(device) if name == "auto" else name
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context that the forward pass and the loss run in."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def cpu_has_bf16() -> bool:
    """True where the processor multiplies bf16 in hardware (AVX512-BF16 or AMX); elsewhere bf16 is slower than fp32."""
    flags = processor_fact("flags", "Features").split()
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _choose(device: torch.device) -> str:
    if device.type == "cpu":
        return "bf16" if cpu_has_bf16() else "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
