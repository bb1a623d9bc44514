"""How fast the small U-Net runs on a CPU, by precision, memory layout and norm.

    python benchmarks/network_step.py [--repeats 7] [--threads 2] [--patch 64 64 64] [--output FILE]

Forward pass (no gradients) and training step (forward, a loss on every decoder level, backward; no optimizer) on random
data, batch 2. The variants take turns, so that a busy machine slows down all of them; reported are the fastest run in
wall time and, with --threads 1, which other processes disturb least, in CPU time.

"contiguous": the layout that torch uses by default. "channels-last": what `UNet.forward` chooses on a CPU.
"torch's norm": `nn.InstanceNorm3d` in the place of `InstanceNorm`, which is the same function.
"""

import argparse
import dataclasses
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from flaresemi.compute.allocation import keep_freed_memory
from flaresemi.compute.device import device_name
from flaresemi.networks import unet
from flaresemi.networks.blocks import InstanceNorm, channels_last
from flaresemi.networks.building import build_network
from flaresemi.networks.cost import forward_gflop
from flaresemi.networks.unet import UNet
from flaresemi.plans import NetworkPlan

FEATURES = (16, 32, 64, 128, 160)
BATCH = 2


@dataclasses.dataclass(frozen=True)
class Variant:
    bf16: bool
    layout: str
    norm: str

    @property
    def name(self) -> str:
        return f"{'bf16' if self.bf16 else 'fp32'} | {self.layout} | {self.norm}"


VARIANTS = tuple(
    Variant(bf16, layout, norm)
    for bf16 in (False, True)
    for layout, norm in (("contiguous", "torch's"), ("channels-last", "torch's"), ("channels-last", "flaresemi's"))
)


def network_plan() -> NetworkPlan:
    levels = len(FEATURES)
    return NetworkPlan(
        block="plain",
        input_channels=1,
        output_channels=8,
        features=FEATURES,
        kernels=((3, 3, 3),) * levels,
        strides=((1, 1, 1),) + ((2, 2, 2),) * (levels - 1),
        encoder_convs=(2,) * levels,
        decoder_convs=(2,) * (levels - 1),
    )


def make_network(variant: Variant) -> UNet:
    torch.manual_seed(0)
    network = build_network(network_plan())
    if variant.norm == "torch's":
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, InstanceNorm):
                    setattr(module, name, nn.InstanceNorm3d(child.weight.numel(), affine=True))
    return network


def set_layout(variant: Variant) -> None:
    unet.channels_last = channels_last if variant.layout == "channels-last" else Tensor.contiguous  # type: ignore[assignment]


def predict(network: UNet, image: Tensor, variant: Variant) -> None:
    network.deep_supervision = False
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
        network(image)


def step(network: UNet, image: Tensor, variant: Variant) -> None:
    network.deep_supervision = True
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
        logits = network(image)
    torch.autograd.backward([level.float().square().mean() for level in logits])


def fastest(
    patch: tuple[int, int, int], repeats: int, clock: Callable[[], float]
) -> dict[Variant, tuple[float, float]]:
    """Seconds of a forward pass and of a training step per variant."""
    image = torch.randn(BATCH, 1, *patch)
    networks = {variant: make_network(variant) for variant in VARIANTS}
    best = {variant: [float("inf"), float("inf")] for variant in VARIANTS}
    for _ in range(repeats + 1):  # the first round warms up, and is never the fastest
        for variant in VARIANTS:
            set_layout(variant)
            for column, run in enumerate((predict, step)):
                start = clock()
                run(networks[variant], image, variant)
                best[variant][column] = min(best[variant][column], clock() - start)
    return {variant: (forward, whole) for variant, (forward, whole) in best.items()}


def report(patch: tuple[int, int, int], repeats: int, threads: int) -> str:
    torch.set_num_threads(threads)
    clock, kind = (time.process_time, "CPU seconds") if threads == 1 else (time.perf_counter, "seconds")
    size = "×".join(map(str, patch))
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    lines = [f"Patch {BATCH}×{size}, {threads} thread(s), fastest of {repeats}, {kind}; {load}.", ""]
    lines += ["| precision | layout | norm | forward | training step | step, GFLOP/s |", "|---|---|---|---|---|---|"]
    gflop = 3 * BATCH * forward_gflop(network_plan(), patch)
    for variant, (forward, whole) in fastest(patch, repeats, clock).items():
        lines.append(f"| {variant.name} | {forward:.3f} | {whole:.3f} | {gflop / whole:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64), metavar=("Z", "Y", "X"))
    parser.add_argument("--keep-memory", action="store_true", help="with keep_freed_memory()")
    parser.add_argument("--output", type=Path, default=None, help="append the table to this file")
    options = parser.parse_args()
    if options.keep_memory:
        keep_freed_memory()
    text = report(tuple(options.patch), options.repeats, options.threads)
    machine = f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, Python {platform.python_version()}"
    machine += "; freed memory kept" if options.keep_memory else ""
    text = f"{machine}; U-Net {', '.join(map(str, FEATURES))}.\n{text}\n"
    print(text)
    if options.output is not None:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
