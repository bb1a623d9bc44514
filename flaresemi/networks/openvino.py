"""Networks as OpenVINO programs: on a CPU it fuses norm and activation, which torch runs one after the other.

Our U-Net is written down operation by operation, which takes a tenth of the time of OpenVINO's
converter at every start; any other network goes through the converter.

OpenVINO is an optional package (`pip install flaresemi[openvino]`), so it is imported where it is used.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flaresemi.errors import ConfigError, shown
from flaresemi.geometry import IntTriple
from flaresemi.importing import import_without
from flaresemi.io.writing import try_disk
from flaresemi.networks.blocks import InstanceNorm, ResidualBlock
from flaresemi.networks.unet import UNet

#: OpenVINO's names of what the CPU computes in.
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

_DYNAMIC = -1

_TELEMETRY = "openvino_telemetry"


class NotConvertedError(ConfigError):
    """OpenVINO does not know an operation of a network, or the network cannot be traced."""


def save_program(network: nn.Module, path: Path) -> None:
    """Writes a network as an OpenVINO program: `path` (.xml) and its weights beside it (.bin), in float32.

    Raises:
        NotConvertedError: OpenVINO cannot convert the network.
        OSError: the disk is full, or cannot be written to.
    """
    openvino = _imported()

    program = _program(network)
    try:
        openvino.save_model(program, path, compress_to_fp16=False)
    except RuntimeError:
        try_disk(path.parent, sum(4 * each.numel() for each in network.parameters()))
        raise


def openvino_is_installed() -> bool:
    """Whether the optional package is there."""
    return importlib.util.find_spec("openvino") is not None


def openvino_version() -> str:
    """Of the installed package, which must be there."""
    return importlib.metadata.version("openvino")


def _imported() -> Any:
    """OpenVINO without its telemetry, which writes an identifier into the home folder and reports every import.

    OpenVINO takes a stub where the package of the telemetry is missing, as it seems to be while this import lasts.
    """
    return import_without("openvino", _TELEMETRY)


class OpenVinoNetwork:
    """A trained network, compiled by OpenVINO for this machine's processor; any window size, from one compilation.

    Args:
        network: Whose weights are taken; not needed afterwards. Or what `exported` gave, in the same precision.
        precision: `fp32`, `bf16` or `fp16`; the processor must have it, otherwise OpenVINO takes fp32.
        threads: Of the processor.

    Raises:
        NotConvertedError: OpenVINO cannot convert the network.
        ValueError: it does not take what was exported.
    """

    def __init__(self, network: nn.Module | bytes, *, precision: str, threads: int) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
        }
        self._tensor = _imported().Tensor
        if isinstance(network, bytes):
            try:
                self._compiled = _core().import_model(network, "CPU", options)
            except RuntimeError as problem:
                raise ValueError(shown(str(problem), 200)) from None
        else:
            self._compiled = _core().compile_model(_program(network), "CPU", options)
        self._request = self._compiled.create_infer_request()

    def exported(self) -> bytes:
        """The compiled program, for this version of OpenVINO on a processor like this one."""
        return self._compiled.export_model().getvalue()

    def __call__(self, windows_bczyx: Tensor) -> Tensor:
        """Logits (B, output channels, Z, Y, X) float32 in main memory; a later call does not overwrite them."""
        windows = self._tensor(windows_bczyx.contiguous().numpy(), shared_memory=True)
        self._request.set_input_tensor(windows)
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor().data.copy())


@functools.cache
def _core() -> Any:
    """OpenVINO, kept until the process ends.

    Its CPU plugin gives the thread that loads it another stack for signal handlers. When its last network is dropped
    by another thread, that stack is unmapped while it is still in use, and the next signal is a segmentation fault
    (seen with OpenVINO 2026.4).
    """
    openvino = _imported()

    return openvino.Core()


def _program(network: nn.Module) -> Any:
    """The forward pass without deep supervision, for any batch and any window size that the network takes."""
    return _unet_program(network) if type(network) is UNet else _converted(network)


def _converted(network: nn.Module) -> Any:
    """The program that OpenVINO's converter makes of a network.

    Raises:
        NotConvertedError: it does not succeed.
    """
    openvino = _imported()
    from openvino import frontend

    failures = (frontend.GeneralFailure, frontend.OpConversionFailure, frontend.OpValidationFailure)
    channels: int = network.input_channels  # type: ignore[assignment]
    divisor_zyx: IntTriple = network.divisor_zyx  # type: ignore[assignment]
    example = torch.zeros(1, channels, *(4 * divisor for divisor in divisor_zyx))
    with warnings.catch_warnings(), _logging_kept():
        warnings.simplefilter("ignore")  # of torch's tracer, about what is the same in every window
        try:
            program = openvino.convert_model(
                network, example_input=example, input=[_DYNAMIC, channels, _DYNAMIC, _DYNAMIC, _DYNAMIC]
            )
        except (
            *failures,
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
        ) as problem:  # of torch's tracer, too
            raise NotConvertedError(
                f"OpenVINO cannot convert this {type(network).__name__}: {shown(str(problem), 200)}",
                fix="let torch compute it: --engine torch",
            ) from problem
    program.inputs[0].get_node().set_friendly_name("image")
    return program


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Undoes what the converter does to the root logger: it lets nothing but errors through from then on."""
    root = logging.root
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _unet_program(network: UNet) -> Any:
    openvino = _imported()
    from openvino import opset13 as ops

    first = next(part for part in network.modules() if isinstance(part, nn.Conv3d))
    image = ops.parameter([_DYNAMIC, first.in_channels, _DYNAMIC, _DYNAMIC, _DYNAMIC], np.float32, name="image")
    features = _apply(network.stem, image)
    skips = []
    for stack in network.encoder:
        features = _apply(stack, features)
        skips.append(features)
    skips.pop()
    for upsampling, decoder, skip in reversed(list(zip(network.upsampling, network.decoder, skips, strict=True))):
        features = _apply(decoder, ops.concat([_apply(upsampling, features), skip], axis=1))
    return openvino.Model([_apply(network.heads[0], features)], [image], "flaresemi")


def _apply(module: nn.Module, node: Any) -> Any:
    """The output node of a module for an input node.

    Raises:
        TypeError: a kind of module that no U-Net of ours holds.
    """
    from openvino import opset13 as ops

    match module:
        case nn.Sequential():
            for part in module:
                node = _apply(part, node)
            return node
        case nn.Identity():
            return node
        case nn.Conv3d():
            pads = module.padding
            node = ops.convolution(node, _array(module.weight), module.stride, pads, pads, module.dilation)
            return node if module.bias is None else ops.add(node, _per_channel(module.bias))
        case nn.ConvTranspose3d():
            node = ops.convolution_backprop_data(
                node,
                _array(module.weight),
                module.stride,
                pads_begin=[0, 0, 0],
                pads_end=[0, 0, 0],
                dilations=[1, 1, 1],
            )
            return node if module.bias is None else ops.add(node, _per_channel(module.bias))
        case InstanceNorm():
            node = ops.mvn(node, np.array([2, 3, 4]), True, module.eps, "INSIDE_SQRT")
            return ops.add(ops.multiply(node, _per_channel(module.weight)), _per_channel(module.bias))
        case nn.LeakyReLU():
            return ops.prelu(node, np.array([module.negative_slope], np.float32))
        case nn.AvgPool3d():
            none = [0, 0, 0]
            return ops.avg_pool(node, module.stride, none, none, module.kernel_size, exclude_pad=True)
        case ResidualBlock():
            return _apply(module.activation, ops.add(_apply(module.body, node), _apply(module.shortcut, node)))
    raise TypeError(f"{type(module).__name__} has no counterpart here")


def _array(weights: Tensor) -> np.ndarray:
    return weights.detach().float().cpu().numpy()


def _per_channel(weights: Tensor) -> np.ndarray:
    return _array(weights).reshape(1, -1, 1, 1, 1)
