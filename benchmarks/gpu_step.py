"""A training step and a forward pass on a GPU: how fast, and does the memory fit what the plans were made for?

The networks, patches and batches are those that the planner chooses for FLARE22 by each preset (the assumed case of
benchmarks/flare22_estimate.py), and the small one of benchmarks/few.py. Random data; a step is what the trainer does
with a batch that is on the GPU: forward under autocast, loss on every level, backward, clipping, AdamW, averaged
weights. A forward pass is that of prediction, with its number of windows.

For each network: the precisions, the two memory layouts, cuDNN's choice of convolution by rule or by trying them all
(`cudnn.benchmark`), and torch.compile. Time: median of the steps after warming up. Memory: what the process holds on
the GPU at its peak, CUDA's own part included. Result: results/gpu_step.md.

    python benchmarks/gpu_step.py [--steps 12] [--networks small base large few] [--compile]
"""

import argparse
import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import running
import torch
from flare22_estimate import ask
from torch import nn

from flaresemi.compute.device import device_name, select_device, synchronize
from flaresemi.compute.precision import Precision, PrecisionName
from flaresemi.networks.blocks import channels_last
from flaresemi.networks.building import build_network
from flaresemi.networks.compiling import compiled
from flaresemi.networks.cost import forward_gflop, inference_memory_gib, training_memory_gib
from flaresemi.networks.gpu_ways import windows_per_pass
from flaresemi.networks.unet import UNet
from flaresemi.planning.presets import PRESETS
from flaresemi.plans import StagePlan
from flaresemi.training.config import TrainingConfig, resolve
from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss
from flaresemi.training.schedule import AveragedWeights, build_optimizer

RESULT = running.RESULTS / "gpu_step.md"

#: Steps that are not counted: cuDNN tries its kernels, and the allocator finds its blocks.
WARM_UP = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to compute a step."""

    precision: PrecisionName
    channels_last: bool = False
    tried: bool = False
    compile: bool = False

    @property
    def name(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        words = [self.precision, layout, "kernels tried" if self.tried else "kernels by rule"]
        return ", ".join([*words, "compiled"] if self.compile else words)


VARIANTS = (
    Variant(precision="bf16"),
    Variant(precision="bf16", tried=True),
    Variant(precision="bf16", channels_last=True),
    Variant(precision="bf16", channels_last=True, tried=True),
    Variant(precision="fp16"),
    Variant(precision="fp16", channels_last=True),
    Variant(precision="fp32"),
    Variant(precision="fp32", channels_last=True),
)
COMPILED = tuple(Variant(precision="bf16", channels_last=last, tried=True, compile=True) for last in (False, True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="that are counted [12]")
    parser.add_argument("--networks", nargs="+", choices=("few", *PRESETS), default=["few", *PRESETS])
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu, to try this script [cuda]")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    device = select_device(options.device)
    lines = [
        "# A step on a GPU",
        "",
        f"{running.when_and_what()}; {device_name(device)}, torch {torch.__version__}; median of {options.steps} "
        f"steps after {WARM_UP}.",
    ]
    for name in options.networks:
        plan = plan_of(name)
        lines += ["", *heading(name, plan, device)]
        for variant in (*VARIANTS, *(COMPILED if options.compile else ())):
            try:
                lines.append(row(plan, variant, device, options.steps))
            except RuntimeError as problem:  # out of memory; a kernel that is not there
                lines.append(f"| {variant.name} | {str(problem).splitlines()[0][:80]} | | | | | | |")
            print(lines[-1], flush=True)
            options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


def plan_of(name: str) -> StagePlan:
    """FINE of a preset for FLARE22, or the network of benchmarks/few.py on CT."""
    if name != "few":
        return ask(name)[0].fine
    plan = ask("small")[0].fine
    features = PRESETS["small"].coarse_features
    network = dataclasses.replace(
        plan.network,
        output_channels=8,
        features=features,
        kernels=((3, 3, 3),) * len(features),
        strides=((1, 1, 1), *((2, 2, 2),) * (len(features) - 2), (2, 1, 2)),
    )
    return dataclasses.replace(plan, network=network, patch_zyx=(80, 40, 80), batch_size=2)


def heading(name: str, plan: StagePlan, device: torch.device) -> list[str]:
    patch = "×".join(map(str, plan.patch_zyx))
    estimated = training_memory_gib(plan.network, plan.patch_zyx, plan.batch_size)
    windows = windows_per_pass(device, plan.patch_zyx)
    forward = inference_memory_gib(plan.network, plan.patch_zyx, windows)
    return [
        f"## {name}: {plan.batch_size} patches of {patch}, {plan.network.block}, features "
        f"{', '.join(map(str, plan.network.features))}",
        "",
        f"Estimated memory: a step {1024 * estimated:.0f} MiB, a forward pass of {windows} window(s) "
        f"{1024 * forward:.0f} MiB.",
        "",
        "| variant | step, ms | patches/s | TFLOP/s | memory, MiB | forward pass, ms | windows/s | memory, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]


def row(plan: StagePlan, variant: Variant, device: torch.device, steps: int) -> str:
    torch.backends.cudnn.benchmark = variant.tried
    torch.manual_seed(0)
    network, precision = build_network(plan.network).to(device), Precision(device, variant.precision)
    network.channels_last = variant.channels_last
    seconds, memory = measured(training_step(network, plan, variant, precision, device), device, steps)
    gflop = 3 * plan.batch_size * forward_gflop(plan.network, plan.patch_zyx)
    told = (
        f"| {variant.name} | {1000 * seconds:.1f} | {plan.batch_size / seconds:.1f} | {gflop / seconds / 1000:.1f} "
        f"| {memory:.0f} |"
    )
    if variant.compile:  # prediction is not compiled
        return f"{told} – | – | – |"
    taken, held = measured(forward_pass(network, plan, precision, device), device, steps)
    windows = windows_per_pass(device, plan.patch_zyx)
    return f"{told} {1000 * taken:.1f} | {windows / taken:.1f} | {held:.0f} |"


def training_step(
    network: UNet, plan: StagePlan, variant: Variant, precision: Precision, device: torch.device
) -> Callable[[], None]:
    network.deep_supervision = True
    optimizer = build_optimizer(resolve(TrainingConfig(), 1000), list(network.parameters()))
    average, loss = AveragedWeights(network, TrainingConfig().ema_decay), DeepSupervisionLoss(SegmentationLoss())
    inputs, outputs = plan.network.input_channels, plan.network.output_channels
    image = torch.randn(plan.batch_size, inputs, *plan.patch_zyx, device=device)
    target = torch.randint(0, outputs, (plan.batch_size, *plan.patch_zyx), device=device)
    supervised = torch.ones(plan.batch_size, outputs, dtype=torch.bool, device=device)
    runnable: nn.Module = compiled(network, image, precision) if variant.compile else network
    numbers = itertools.count(1)

    def step() -> None:
        with precision.autocast():
            logits = runnable(image)
        value = loss(logits, target, supervised).mean()
        optimizer.zero_grad(set_to_none=True)
        precision.scaler.scale(value).backward()
        precision.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        average.update(network, next(numbers))

    return step


def forward_pass(network: UNet, plan: StagePlan, precision: Precision, device: torch.device) -> Callable[[], None]:
    network.deep_supervision = False
    network.zero_grad(set_to_none=True)
    count = windows_per_pass(device, plan.patch_zyx)
    windows = torch.randn(count, plan.network.input_channels, *plan.patch_zyx, device=device)
    if network.channels_last:  # the layers keep the layout that they are given
        windows = channels_last(windows)

    def forward() -> None:
        with torch.inference_mode(), precision.autocast():
            network(windows).float()

    return forward


def measured(run: Callable[[], None], device: torch.device, steps: int) -> tuple[float, float]:
    """Median seconds of a call, and MiB that this process held on the GPU at its peak."""
    on_gpu = device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    taken = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    held = torch.cuda.max_memory_reserved(device) / 2**20 + outside_the_allocator_mib(device) if on_gpu else 0.0
    return statistics.median(taken[WARM_UP:]), held


def outside_the_allocator_mib(device: torch.device) -> float:
    """What CUDA, its kernels and others take of the GPU now, beside what torch's allocator holds."""
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / 2**20


if __name__ == "__main__":
    main()
