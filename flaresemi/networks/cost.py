"""The cost of a network plan: parameters, operations, memory; our U-Net by arithmetic, other networks by measuring.

Planning a U-Net needs neither torch nor GPU; another network is built without its numbers and run on shapes alone.
"""

import dataclasses
import math
import typing

from flaresemi.errors import ConfigError, shown
from flaresemi.geometry import IntTriple
from flaresemi.plans import NetworkPlan
from flaresemi.records import dumps

if typing.TYPE_CHECKING:
    from flaresemi.networks.measuring import Measured

_GIB = 2.0**30

#: Bytes of an activation under autocast (bf16 or fp16).
_ACTIVATION_BYTES = 2

#: Bytes per parameter while training: weight, gradient and AdamW's two moments in fp32, a copy of the weight for
#: autocast. The exponential mean of the weights, where it is kept, adds 4.
_PARAMETER_BYTES = 4 + 4 + 8 + 2 + 4

#: Bytes per logit that the loss takes: the logits in fp32, their softmax, the one-hot target and a gradient.
_LOSS_BYTES = 4 * 4

#: Memory of the libraries besides. Chosen.
_FIXED_GIB = 0.25

#: Memory of CUDA's context and kernels besides. Fits four measured networks (benchmarks/results/gpu_step.md).
_CUDA_GIB = 0.6

#: The allocator cannot use every gap between blocks. Chosen.
_FRAGMENTATION = 1.1


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """One layer, per voxel of the level that it writes to.

    Attributes:
        level: Where the output lies; 0 is full resolution.
        parameters: Of the convolution and its norm.
        multiplications: Per output voxel.
        kept: Numbers per output voxel that backward needs.
        outputs: Numbers per output voxel that it computes.
    """

    level: int
    parameters: int
    multiplications: int
    kept: int
    outputs: int


def parameter_count(plan: NetworkPlan) -> int:
    """Trainable numbers of the network, all segmentation heads included; exact."""
    if plan.architecture != "unet":
        return _parameters_of_others(plan)
    return sum(layer.parameters for layer in _layers(plan))


def forward_gflop(plan: NetworkPlan, patch_zyx: IntTriple) -> float:
    """Operations of the convolutions for one patch, 10⁹; a multiplication with its addition counts 2.

    A training step costs about three times as much. The cost of a larger region is that of its voxels.
    """
    voxels = _voxels_per_level(plan, patch_zyx)
    if measured := _measured(plan, patch_zyx):
        return measured.gflop
    return 2e-9 * sum(layer.multiplications * voxels[layer.level] for layer in _layers(plan))


def kept_activations(plan: NetworkPlan, patch_zyx: IntTriple, batch_size: int) -> int:
    """Numbers that a training step with deep supervision keeps from forward for backward, the input included."""
    voxels = [batch_size * count for count in _voxels_per_level(plan, patch_zyx)]
    if measured := _measured(plan, patch_zyx):
        return batch_size * measured.kept
    return plan.input_channels * voxels[0] + sum(layer.kept * voxels[layer.level] for layer in _layers(plan))


def training_memory_gib(plan: NetworkPlan, patch_zyx: IntTriple, batch_size: int) -> float:
    """GPU memory of a training step under autocast with deep supervision and AdamW, GiB.

    Activations that backward needs (2 bytes each; exact, a test compares them with what autograd saves), two gradients
    of the largest activation and one of its size as the convolutions' workspace, the loss on every level, and per
    parameter weight, gradient, optimizer state, autocast copy and averaged weight.

    Source: activations and parameters from the blocks in `blocks.py`; workspace, fragmentation and fixed part chosen.
    On an H200 (benchmarks/results/gpu_step.md) FLARE22's `base` and `large` took 6.8 and 19.4 GiB, where this says 7.9
    and 22.4, and `small` 1.1, where it says 0.8: CUDA's own part is larger than the fixed one here.
    """
    voxels = [batch_size * count for count in _voxels_per_level(plan, patch_zyx)]
    kept = kept_activations(plan, patch_zyx, batch_size)
    if measured := _measured(plan, patch_zyx):
        largest, logits = batch_size * measured.largest, batch_size * measured.logits
    else:
        largest = max(layer.outputs * voxels[layer.level] for layer in _layers(plan))
        logits = plan.output_channels * sum(voxels[:-1])
    total = (kept + 3 * largest) * _ACTIVATION_BYTES + logits * _LOSS_BYTES + parameter_count(plan) * _PARAMETER_BYTES
    return total * _FRAGMENTATION / _GIB + _FIXED_GIB


def inference_memory_gib(plan: NetworkPlan, patch_zyx: IntTriple, batch_size: int = 1, *, on_gpu: bool = True) -> float:
    """Memory of a forward pass in half precision without gradients, GiB; the label volume of the image comes on top.

    The peak is in the upper decoder level: the skips of all levels, the concatenation, one convolution's input and
    output, which a GPU's kernels hold once more in their workspace; the logits in fp32.

    Source: a GPU's workspace and fixed part are fitted to benchmarks/results/gpu_step.md (four windows in bf16), where
    the estimate is between 2 % less and 21 % more than what four networks took.
    """
    voxels = [batch_size * count for count in _voxels_per_level(plan, patch_zyx)]
    if measured := _measured(plan, patch_zyx):
        largest = batch_size * measured.largest
        skips = max(batch_size * measured.live - 2 * largest, 0)
    else:
        skips = sum(features * count for features, count in zip(plan.features, voxels, strict=True))
        largest = max(layer.outputs * voxels[layer.level] for layer in _layers(plan))
    logits = plan.output_channels * voxels[0]
    total = (skips + (4 if on_gpu else 2) * largest) * _ACTIVATION_BYTES + logits * 6 + parameter_count(plan) * 6
    return total * _FRAGMENTATION / _GIB + (_CUDA_GIB if on_gpu else _FIXED_GIB)


def _parameters_of_others(plan: NetworkPlan) -> int:
    from flaresemi.networks.building import build_on_meta

    key = dumps(plan)
    if key not in _PARAMETERS:
        _PARAMETERS[key] = sum(parameter.numel() for parameter in build_on_meta(plan).parameters())
    return _PARAMETERS[key]


def _measured(plan: NetworkPlan, patch_zyx: IntTriple) -> "Measured | None":
    """The measured cost of one patch in a network that the formulas do not know; None for our U-Net.

    Raises:
        ConfigError: that network cannot be run on such a patch.
    """
    if plan.architecture == "unet":
        return None
    from flaresemi.networks.building import build_on_meta
    from flaresemi.networks.measuring import measure

    key = dumps(plan), patch_zyx
    if key not in _KNOWN:
        network = build_on_meta(plan)
        try:
            _KNOWN[key] = measure(network, (1, plan.input_channels, *patch_zyx))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as problem:  # of whoever wrote the network
            raise ConfigError(
                f"the network '{plan.architecture}' cannot be run on a patch of {patch_zyx}: {shown(str(problem), 200)}"
            ) from problem
    return _KNOWN[key]


#: Measured costs by network plan and patch: planning asks again and again.
_KNOWN: "dict[tuple[str, IntTriple], Measured]" = {}
_PARAMETERS: dict[str, int] = {}


def _layers(plan: NetworkPlan) -> list[_Layer]:
    """All layers of the network that `unet.py` builds, in order."""
    features = plan.input_channels
    layers = []
    if plan.block == "residual":
        layers.append(_conv_norm(0, features, plan.features[0], plan.kernels[0]))
        features = plan.features[0]
    for level, outputs in enumerate(plan.features):
        for block in range(plan.encoder_convs[level]):
            if plan.block == "plain":
                layers.append(_conv_norm(level, features, outputs, plan.kernels[level]))
            else:
                strides = block == 0 and plan.strides[level] != (1, 1, 1)
                layers += _residual_block(level, features, outputs, plan.kernels[level], strides)
            features = outputs
    for level in reversed(range(len(plan.features) - 1)):
        outputs = plan.features[level]
        layers.append(_upsampling(level, features, outputs, plan))
        features = 2 * outputs
        for _ in range(plan.decoder_convs[level]):
            layers.append(_conv_norm(level, features, outputs, plan.kernels[level]))
            features = outputs
        layers.append(_head(level, outputs, plan.output_channels))
    return layers


def _conv_norm(level: int, inputs: int, outputs: int, kernel: IntTriple, *, activation: bool = True) -> _Layer:
    weights = inputs * outputs * math.prod(kernel)
    # The norm keeps its input. The activation works in place and keeps its result, which the next layer keeps anyway.
    return _Layer(level, weights + 2 * outputs, weights, (2 if activation else 1) * outputs, outputs)


def _residual_block(level: int, inputs: int, outputs: int, kernel: IntTriple, strides: bool) -> list[_Layer]:
    layers = [
        _conv_norm(level, inputs, outputs, kernel),
        _conv_norm(level, outputs, outputs, kernel, activation=False),
        _Layer(level, 0, 0, outputs, outputs),  # the activation after the sum
    ]
    if inputs != outputs:
        shortcut = _conv_norm(level, inputs, outputs, (1, 1, 1), activation=False)
        layers.append(dataclasses.replace(shortcut, kept=shortcut.kept + (inputs if strides else 0)))
    return layers


def _upsampling(level: int, inputs: int, outputs: int, plan: NetworkPlan) -> _Layer:
    # Kernel and stride are equal, so each output voxel has one input voxel; what is kept is the concatenation.
    weights = inputs * outputs * math.prod(plan.strides[level + 1])
    biases = outputs if plan.arguments.get("upsampling_bias", False) else 0
    return _Layer(level, weights + biases, inputs * outputs, 2 * outputs, 2 * outputs)


def _head(level: int, inputs: int, outputs: int) -> _Layer:
    return _Layer(level, inputs * outputs + outputs, inputs * outputs, 0, outputs)


def _voxels_per_level(plan: NetworkPlan, patch_zyx: IntTriple) -> list[int]:
    if any(size % divisor for size, divisor in zip(patch_zyx, plan.divisor_zyx, strict=True)):
        raise ValueError(f"patch {patch_zyx} must be divisible by {plan.divisor_zyx}, the product of the strides")
    voxels = [math.prod(patch_zyx)]
    for stride in plan.strides[1:]:
        voxels.append(voxels[-1] // math.prod(stride))
    return voxels
