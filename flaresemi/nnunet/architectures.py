"""nnU-Net's networks as ours: a plan from its architecture, and its weights by our names.

Its two U-Nets are built of the same pieces as `networks/unet.py`, so that no second implementation is needed. Two
things differ: its convolutions have a bias, which the instance norm behind each of them takes out again, and which is
left out here; and so have its transposed convolutions, where it stays.

Source: dynamic_network_architectures 0.4.4 (unet.py, residual_unet.py, residual.py), nnunetv2 2.8.1 (plans_handler.py).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from flaresemi.errors import CheckpointError, listed, shown
from flaresemi.networks.building import build_on_meta
from flaresemi.networks.checkpoint import compare_weights
from flaresemi.plans import NetworkPlan

#: The classes that can be run, by the last part of their names: our block, and what its convolutions are called.
_CLASSES = {
    "PlainConvUNet": ("plain", "n_conv_per_stage"),
    "ResidualEncoderUNet": ("residual", "n_blocks_per_stage"),
}

#: What the arguments must be that choose something which our blocks do not offer.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "conv_op": ("torch.nn.modules.conv.Conv3d", "torch.nn.Conv3d"),
    "norm_op": ("torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.InstanceNorm3d"),
    "norm_op_kwargs": ({"eps": 1e-05, "affine": True},),
    "dropout_op": (None,),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
    "nonlin_kwargs": (None, {}, {"inplace": True}, {"inplace": True, "negative_slope": 0.01}),
    "nonlin_first": (None, False),
    "bottleneck_channels": (None,),
    "stem_channels": (None,),
}

#: Our names to theirs: `{level}` counts from full resolution, `{rank}`, as theirs in the decoder, from below.
_NAMES = (
    (r"stem\.0\.(?P<p>weight)", "encoder.stem.convs.0.conv.{p}"),
    (r"stem\.1\.(?P<p>\w+)", "encoder.stem.convs.0.norm.{p}"),
    (r"encoder\.(?P<level>\d+)\.(?P<i>\d+)\.0\.(?P<p>weight)", "encoder.stages.{level}.0.convs.{i}.conv.{p}"),
    (r"encoder\.(?P<level>\d+)\.(?P<i>\d+)\.1\.(?P<p>\w+)", "encoder.stages.{level}.0.convs.{i}.norm.{p}"),
    (
        r"encoder\.(?P<level>\d+)\.(?P<i>\d+)\.body\.(?P<part>[01])\.(?P<piece>[01])\.(?P<p>\w+)",
        "encoder.stages.{level}.blocks.{i}.conv{part}.{piece}.{p}",
    ),
    (
        r"encoder\.(?P<level>\d+)\.(?P<i>\d+)\.shortcut\.(?P<part>[01])\.(?P<piece>[01])\.(?P<p>\w+)",
        "encoder.stages.{level}.blocks.{i}.skip.{part}.{piece}.{p}",
    ),
    (r"upsampling\.(?P<level>\d+)\.(?P<p>\w+)", "decoder.transpconvs.{rank}.{p}"),
    (r"decoder\.(?P<level>\d+)\.(?P<i>\d+)\.0\.(?P<p>weight)", "decoder.stages.{rank}.convs.{i}.conv.{p}"),
    (r"decoder\.(?P<level>\d+)\.(?P<i>\d+)\.1\.(?P<p>\w+)", "decoder.stages.{rank}.convs.{i}.norm.{p}"),
    (r"heads\.(?P<level>\d+)\.(?P<p>\w+)", "decoder.seg_layers.{rank}.{p}"),
)

#: Theirs that say nothing more: the same tensors by another name, and biases that a norm takes out.
_NEEDLESS = re.compile(r"decoder\.encoder\..*|.*\.all_modules\..*|.*\.(convs\.\d+|conv[12]|skip\.\d)\.conv\.bias")


def network_plan(configuration: Mapping[str, Any], inputs: int, outputs: int, where: object) -> NetworkPlan:
    """Our plan of a configuration's network.

    Args:
        configuration: From nnU-Net's plans.json, of either of its formats.
        inputs: Channels of the image.
        outputs: Background and labels.
        where: For messages.

    Raises:
        CheckpointError: it is another network than we can build; the message names it.
        ValueError, TypeError, KeyError: the plans are damaged.
    """
    name, arguments = _architecture(configuration)
    kind = name.rsplit(".", 1)[-1]
    if kind not in _CLASSES:
        raise CheckpointError(
            f"nnU-Net's network '{shown(name)}' cannot be run here, only {' and '.join(_CLASSES)}",
            where=where,
            fix="predict with nnU-Net itself; its label maps can teach: flaresemi_train --pseudo-labels FOLDER",
        )
    block, counts = _CLASSES[kind]
    for key, allowed in _REQUIRED.items():
        if arguments.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"nnU-Net's network has {key} {shown(str(arguments[key]))}, which our blocks have not",
                where=where,
                fix="predict with nnU-Net itself; its label maps can teach: flaresemi_train --pseudo-labels FOLDER",
            )
    levels = arguments["n_stages"]
    return NetworkPlan(
        block=block,  # type: ignore[arg-type]
        input_channels=inputs,
        output_channels=outputs,
        features=tuple(_each(arguments["features_per_stage"], levels)),
        kernels=tuple(_triple(kernel) for kernel in _each(arguments["kernel_sizes"], levels)),
        strides=tuple(_triple(stride) for stride in _each(arguments["strides"], levels)),
        encoder_convs=tuple(_each(arguments[counts], levels)),
        decoder_convs=tuple(reversed(_each(arguments["n_conv_per_stage_decoder"], levels - 1))),
        arguments={"upsampling_bias": True} if arguments.get("conv_bias", False) else {},
    )


def our_weights(theirs: Mapping[str, Tensor], plan: NetworkPlan, where: object) -> dict[str, Tensor]:
    """The weights by our names, copied: nothing of the file stays in memory.

    Raises:
        CheckpointError: they are not those of this network; the message names what differs.
    """
    network = build_on_meta(plan)
    names = {name: _their_name(name, plan) for name in network.state_dict()}
    missing = sorted({name for name in names.values() if name not in theirs})
    left = sorted(name for name in theirs if name not in names.values() and not _NEEDLESS.fullmatch(name))
    if missing or left:
        found = "; ".join(
            f"{what} {listed([shown(name) for name in some])}"
            for what, some in (("it lacks", missing), ("unknown are", left))
            if some
        )
        raise CheckpointError(
            f"the checkpoint's weights are not those of the network in plans.json: {found}",
            where=where,
            fix="a trainer of its own has built another network: predict with nnU-Net itself",
        )
    taken = {ours: theirs[name].detach() for ours, name in names.items()}
    if problems := compare_weights(network, taken):
        raise CheckpointError(
            f"the checkpoint's weights do not fit the network in plans.json: {'; '.join(problems[:4])}",
            where=where,
            fix="copy the whole folder of the model again: plans.json and checkpoint are of two models",
        )
    stored = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in taken.values()}
    if sum(each.numel() * each.element_size() for each in taken.values()) > sum(stored.values()):
        raise CheckpointError("damaged checkpoint: its weights announce more numbers than there are", where=where)
    return {ours: each.to(copy=True) for ours, each in taken.items()}


def _architecture(configuration: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Class and arguments of the network; plans from before nnU-Net 2.4 say them in other words."""
    if "architecture" in configuration:
        return configuration["architecture"]["network_class_name"], configuration["architecture"]["arch_kwargs"]
    name, encoder = configuration["UNet_class_name"], configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    return name, {
        "n_stages": len(encoder),
        "features_per_stage": [min(base * 2**level, most) for level in range(len(encoder))],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        "n_conv_per_stage": encoder,
        "n_blocks_per_stage": encoder,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
    }


def _their_name(ours: str, plan: NetworkPlan) -> str:
    for pattern, theirs in _NAMES:
        found = re.fullmatch(pattern, ours)
        if found is None:
            continue
        parts = found.groupdict()
        if "level" in parts:
            parts["rank"] = str(len(plan.features) - 2 - int(parts["level"]))
        if "body" in ours:
            parts["part"] = str(int(parts["part"]) + 1)
        if "piece" in parts:
            parts["piece"] = "norm" if parts["piece"] == "1" else "conv"
        return theirs.format(**parts)
    raise ValueError(f"'{ours}' is no weight of a U-Net")


def _each(values: Any, count: int) -> Sequence[Any]:
    """One value per level; a number stands for all."""
    each = [values] * count if isinstance(values, int) else list(values)
    if len(each) != count:
        raise ValueError(f"{len(each)} entries for {count} levels")
    return each


def _triple(sizes: int | Iterable[int]) -> tuple[int, int, int]:
    z, y, x = [sizes] * 3 if isinstance(sizes, int) else sizes
    return z, y, x
