"""From a network plan to a module, whoever builds it: flaresemi or another installed package."""

from collections.abc import Callable

import torch
from torch import nn

from flaresemi import extensions
from flaresemi.errors import ConfigError, shown
from flaresemi.networks.compiling import load_compiler
from flaresemi.networks.convolution import Convolution
from flaresemi.networks.mednext import MedNeXt
from flaresemi.networks.unet import UNet
from flaresemi.plans import NetworkPlan

#: Those that flaresemi builds itself.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "mednext": MedNeXt}


def build_network(plan: NetworkPlan) -> nn.Module:
    """A freshly initialized network (torch's global random state decides the weights).

    Whoever built it, it has the attributes `input_channels`, `divisor_zyx`, `channels_last`, which it may ignore, and
    `deep_supervision`: True: `forward` may return a list of logits, full resolution first, each level half as large or
    less; False: logits (B, output channels, Z, Y, X) of an image (B, input channels, Z, Y, X).

    Raises:
        ConfigError: nobody builds such networks here, or the builder does not know an argument.
    """
    if plan.architecture in ARCHITECTURES:
        builder, who = ARCHITECTURES[plan.architecture], "flaresemi"
    else:
        found, origin = extensions.load(extensions.NETWORKS, plan.architecture, own=tuple(ARCHITECTURES))
        if not callable(found):
            raise ConfigError(f"'{plan.architecture}' of {origin} builds no networks: it cannot be called")
        builder, who = found, str(origin)
    try:
        network = builder(plan, **plan.arguments)
    except TypeError as problem:
        given = ", ".join(f"{name}={value!r}" for name, value in plan.arguments.items())
        raise ConfigError(
            f"'{plan.architecture}' of {who} does not build a network with ({shown(given, 200)}): "
            f"{shown(str(problem), 200)}",
            where="network.arguments",
            fix="correct them in plans.json",
        ) from problem
    if not isinstance(network, nn.Module):
        raise ConfigError(f"'{plan.architecture}' of {who} built no torch module but {type(network).__name__}")
    network.input_channels, network.divisor_zyx = plan.input_channels, plan.divisor_zyx  # type: ignore[assignment]
    network.deep_supervision = network.channels_last = False  # type: ignore[assignment]
    for part in network.modules():
        if type(part) is nn.Conv3d:
            part.__class__ = Convolution
    return network


def refuse_other_network(network: nn.Module, plan: NetworkPlan, *, what: str) -> None:
    """Checks that a network has the weights of the plan's, so that whoever reads its checkpoint can build it.

    Args:
        what: Who made the network, for the message.

    Raises:
        ConfigError: it has others.
    """
    planned = build_on_meta(plan).state_dict()
    own = network.state_dict()
    differing = [
        name
        for name in {**planned, **own}
        if getattr(own.get(name), "shape", None) != getattr(planned.get(name), "shape", None)
    ]
    if differing:
        raise ConfigError(
            f"{what} builds another network than the plan says ({len(differing)} weights differ, the first is "
            f"{shown(differing[0])}), and prediction could not build it again",
            fix=f"declare it in {extensions.NETWORKS}, and name it in plans.json as the architecture",
        )


def build_on_meta(plan: NetworkPlan) -> nn.Module:
    """The network with shapes and without numbers, whatever its size."""
    load_compiler()  # torch does so by itself here, and would leave a folder behind
    with torch.device("meta"):
        return build_network(plan)
