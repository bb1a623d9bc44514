"""The U-Net as an OpenVINO program: on a CPU it fuses norm and activation, which torch runs one after the other.

OpenVINO is an optional package (`pip install flaresemi[openvino]`), so it is imported where it is used.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flaresemi.io.writing import try_disk
from flaresemi.networks.blocks import InstanceNorm, ResidualBlock
from flaresemi.networks.unet import UNet

#: OpenVINO's names of what the CPU computes in.
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

_DYNAMIC = -1


def save_program(network: UNet, path: Path) -> None:
    """Writes a network as an OpenVINO program: `path` (.xml) and its weights beside it (.bin), in float32.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    import openvino

    program = _program(network)
    try:
        openvino.save_model(program, path, compress_to_fp16=False)
    except RuntimeError:
        try_disk(path.parent, sum(4 * each.numel() for each in network.parameters()))
        raise


def openvino_is_installed() -> bool:
    """Whether the optional package is there."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoNetwork:
    """A trained U-Net, compiled by OpenVINO for this machine's processor; any window size, from one compilation.

    Args:
        network: Whose weights are taken; not needed afterwards.
        precision: `fp32`, `bf16` or `fp16`; the processor must have it, otherwise OpenVINO takes fp32.
        threads: Of the processor.
    """

    def __init__(self, network: UNet, *, precision: str, threads: int) -> None:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
        }
        self._tensor = openvino.Tensor
        self._request = _core().compile_model(_program(network), "CPU", options).create_infer_request()

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
    import openvino

    return openvino.Core()


def _program(network: UNet) -> Any:
    """The forward pass of `UNet` without deep supervision, in OpenVINO's operations."""
    import openvino
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
    """What the module computes from the node.

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
            return ops.convolution_backprop_data(
                node, _array(module.weight), module.stride, pads_begin=[0, 0, 0], pads_end=[0, 0, 0],
                dilations=[1, 1, 1],
            )  # fmt: skip
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
