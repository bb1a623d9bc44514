"""How close to the processor's limit is a window? GFLOP/s of both engines against the best single convolutions.

The limit is measured, layer by layer: each convolution of the network alone, at its own shape, without norm or
activation, in the fastest of torch's three memory layouts (contiguous, channels-last, oneDNN's own blocked one). A
network whose layers all ran that fast, and that did nothing else, would reach 100 %.

    python benchmarks/hardware_limit.py [--tries 5]          result: results/hardware_limit.md
"""

import argparse
import copy
import datetime
import functools
import math
import time
from collections.abc import Callable

import prediction
import running
import torch
from torch import Tensor, nn
from torch.utils import mkldnn

from flaresemi.compute.device import available_cores
from flaresemi.compute.precision import Precision, cpu_has_bf16
from flaresemi.networks.building import build_network
from flaresemi.networks.cost import forward_gflop
from flaresemi.networks.openvino import OpenVinoNetwork, openvino_is_installed
from flaresemi.networks.unet import UNet
from flaresemi.plans import NetworkPlan

#: (name, features, kernels, strides, window)
NETWORKS = (
    ("small, 16…160", (16, 32, 64, 128, 160), [[3, 3, 3]] * 5, [[1, 1, 1]] + [[2, 2, 2]] * 4, (64, 64, 96)),
    (
        "nnU-Net's, 32…320",
        tuple(prediction.NETWORK["features"]),
        prediction.NETWORK["kernels"],
        prediction.NETWORK["strides"],
        tuple(prediction.NETWORK["patch_zyx"]),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=5, help="of each; the fastest counts [5]")
    tries = parser.parse_args().tries
    torch.set_num_threads(available_cores())
    lines = [
        "# one window against the processor's limit",
        "",
        f"{datetime.date.today().isoformat()}; {running.machine()}. Fastest of {tries}.",
        "",
    ]
    precisions = ["bf16", "fp32"] if cpu_has_bf16() else ["fp32"]
    for name, features, kernels, strides, window in NETWORKS:
        plan = NetworkPlan(
            block="plain",
            input_channels=1,
            output_channels=14,
            features=features,
            kernels=tuple(map(tuple, kernels)),
            strides=tuple(map(tuple, strides)),
            encoder_convs=(2,) * len(features),
            decoder_convs=(2,) * (len(features) - 1),
        )
        network = build_network(plan).eval().requires_grad_(False)
        image = torch.randn(1, 1, *window)
        gflop = forward_gflop(plan, window)
        lines += [f"## {name}, window {'×'.join(map(str, window))}, {gflop:.0f} GFLOP", ""]
        for precision in precisions:
            limit, table = layers(network, image, precision, tries)
            lines += [f"### {precision}", "", *table, "", "| | seconds | GFLOP/s | share of the limit |"]
            lines += [
                "|---|---:|---:|---:|",
                f"| all convolutions, each at its best | {limit:.3f} | {gflop / limit:.0f} | 100 % |",
            ]
            for engine, forward in engines(network, precision).items():
                taken = fastest(functools.partial(forward, image), tries)
                lines.append(f"| {engine} | {taken:.3f} | {gflop / taken:.0f} | {limit / taken:.0%} |")
                print(lines[-1], flush=True)
            lines.append("")
    (running.RESULTS / "hardware_limit.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def engines(network: UNet, precision: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Both engines of flaresemi_predict, where they are there."""
    autocast = Precision(torch.device("cpu"), precision)

    def with_torch(image: Tensor) -> Tensor:
        with torch.inference_mode(), autocast.autocast():
            return network(image)

    found: dict[str, Callable[[Tensor], Tensor]] = {"torch": with_torch}
    if openvino_is_installed():
        found["OpenVINO"] = OpenVinoNetwork(network, precision=precision, threads=torch.get_num_threads())
    return found


def layers(network: UNet, image: Tensor, precision: str, tries: int) -> tuple[float, list[str]]:
    """The sum of the fastest times of all convolutions, and a table of them by shape."""
    calls: dict[tuple, list] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        weight = layer.weight
        key = (type(layer).__name__, tuple(inputs[0].shape[1:]), tuple(weight.shape), layer.stride)  # type: ignore[union-attr]
        calls.setdefault(key, [layer, 0])[1] += 1

    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv3d | nn.ConvTranspose3d)]
    hooks = [part.register_forward_hook(watch) for part in convolutions]
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    total = 0.0
    table = [
        "| layer | input (C, Z, Y, X) | weight | times | GFLOP/s | fastest layout |",
        "|---|---|---|---:|---:|---|",
    ]
    for (kind, shape, weight, stride), (layer, times) in calls.items():
        seconds, layout = best_layout(layer, torch.randn(1, *shape), dtype, tries)
        outputs = 1.0
        for size, step in zip(shape[1:], stride, strict=True):
            outputs *= size * step if kind == "ConvTranspose3d" else -(-size // step)
        # Transposed, kernel and stride are equal: each output voxel sees one tap.
        taps = math.prod(weight[:2] if kind == "ConvTranspose3d" else weight)
        total += times * seconds
        table.append(
            f"| {kind} | {'×'.join(map(str, shape))} | {'×'.join(map(str, weight))} | {times} | "
            f"{2e-9 * outputs * taps / seconds:.0f} | {layout} |"
        )
    return total, table


def best_layout(layer: nn.Module, features: Tensor, dtype: torch.dtype, tries: int) -> tuple[float, str]:
    """Seconds in the fastest memory layout, and its name."""
    found: dict[str, float] = {}
    with torch.inference_mode():
        for name, layout in (("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last_3d)):
            moved = copy.deepcopy(layer).to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
            given = features.to(dtype=dtype, memory_format=layout)
            found[name] = fastest(functools.partial(moved, given), tries)
        if isinstance(layer, nn.Conv3d):
            blocked = mkldnn.to_mkldnn(copy.deepcopy(layer), dtype)
            given = blocked(features.to(dtype).to_mkldnn())  # of the output's shape: the layout to go on in
            if given.shape == features.shape:
                found["blocked"] = fastest(functools.partial(blocked, given), tries)
    name = min(found, key=found.__getitem__)
    return found[name], name


def fastest(work: Callable[[], object], tries: int) -> float:
    """Seconds of the fastest call; the first one, which prepares, does not count."""
    work()
    taken = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


if __name__ == "__main__":
    main()
