"""Networks as ONNX files, for whatever runs those.

torch writes them by tracing, and needs the optional package onnx for it (`pip install flaresemi[onnx]`).
"""

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import nn

from flaresemi.errors import ConfigError, shown
from flaresemi.files import atomic_path
from flaresemi.geometry import IntTriple

#: Of 2021: what is old is read everywhere.
_OPSET = 17


def onnx_is_installed() -> bool:
    """Whether the optional package is there."""
    return importlib.util.find_spec("onnx") is not None


def save_onnx(network: nn.Module, path: Path) -> None:
    """Writes a network in float32: input `image` (1, channels, Z, Y, X), output `logits` (1, outputs, Z, Y, X).

    Any window size that the network takes will do.

    Args:
        network: In main memory, in evaluation mode and without deep supervision.
        path: The file.

    Raises:
        ConfigError: the network holds what ONNX does not know.
        OSError: the disk is full, or cannot be written to.
    """
    channels: int = network.input_channels  # type: ignore[assignment]
    divisor_zyx: IntTriple = network.divisor_zyx  # type: ignore[assignment]
    example, sizes = torch.zeros(1, channels, *(4 * divisor for divisor in divisor_zyx)), {2: "z", 3: "y", 4: "x"}
    try:
        with atomic_path(path) as temporary, warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of the tracer, about what is the same in every window; that it is old
            torch.onnx.export(
                network,
                (example,),
                temporary,
                dynamo=False,
                opset_version=_OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": sizes, "logits": sizes},
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"torch cannot write this {type(network).__name__} as ONNX: {shown(str(problem), 200)}",
            fix="leave --onnx out",
        ) from problem
