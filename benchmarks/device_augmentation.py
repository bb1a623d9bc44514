"""What a training's samples cost the loader: augmented there by batchgenerators, or read there and augmented in torch.

Patches of three sizes (the network of benchmarks/few.py, `small` and `base` of FLARE22) of one made-up CT of one
channel and 13 labels. In the loader: processor time of one process without BLAS threads, until the sample is bytes on
their way to the training, so that other work on the machine matters little. In the training: torch with one thread in
the same processor time; on a GPU, where there is one, by the clock, until it has computed batches of two, transfer
included. The kinds take turns. Result: results/device_augmentation.md.

    OMP_NUM_THREADS=1 python benchmarks/device_augmentation.py
"""

import argparse
import pickle
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import running
import torch
from gpu_step import plan_of

from flaresemi.compute.device import device_name, synchronize
from flaresemi.compute.parallel import one_blas_thread
from flaresemi.geometry import BoundingBox, IntTriple, StageGrid
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.plans import StagePlan
from flaresemi.training.augmentation import Augmentation
from flaresemi.training.device_augmentation import DeviceAugmentation
from flaresemi.training.patches import ReadBatch
from flaresemi.training.sampling import AddressSampler, PatchSampler, TrainingCase, build_loader

SIZES = ("few", "small", "base")
STRENGTHS = ("standard", "strong")
ORGANS = 13

#: Patches of a batch on the GPU.
BATCH = 2


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--voxels", type=int, default=24_000_000, help="of all samples of a kind and turn [24000000]")
    parser.add_argument("--turns", type=int, default=3, help="[3]")
    options = parser.parse_args()
    one_blas_thread()
    torch.set_num_threads(1)
    bench = running.Bench("device_augmentation", options.work)
    gpu = torch.device("cuda") if torch.cuda.is_available() else None
    lines = [
        "# Augmentation in the loader, or where the network is",
        "",
        f"{running.when_and_what()}; medians of {options.turns} turns (ranges). The processor had other work, too.",
        "",
        "| patch | augmentation | batchgenerators, in the loader, CPU ms | patches/s of a core | read only, CPU ms "
        "| patches/s of a core | in torch, one thread, CPU ms | in torch, on the GPU, ms |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        plan = plan_of(size)
        store = made_store(bench.work / size, plan.patch_zyx)
        for strength in STRENGTHS:
            count = max(options.voxels // int(np.prod(plan.patch_zyx)), 20)
            lines.append(row(size, plan, strength, measured(store, plan, strength, count, options.turns, gpu)))
            print(lines[-1], flush=True)
        shutil.rmtree(store.folder)
    lines += ["", f"On the GPU: {device_name(gpu)}, batches of {BATCH}." if gpu else "No GPU was there."]
    bench.publish(lines)


def made_store(folder: Path, patch_zyx: IntTriple) -> CaseStore:
    """One case, half as long again as a patch in every direction."""
    store = CaseStore(folder)
    z, y, x = (size * 3 // 2 for size in patch_zyx)
    generator = np.random.default_rng(0)
    image = generator.normal(0, 1, (1, z, y, x)).astype(np.float32)
    blocks = generator.integers(0, ORGANS + 1, (z // 8 + 1, y // 8 + 1, x // 8 + 1), np.uint8)
    label = blocks.repeat(8, 0).repeat(8, 1).repeat(8, 2)[:z, :y, :x]
    grid = StageGrid(
        canonical_shape_zyx=(z, y, x),
        canonical_spacing_zyx_mm=(1.0, 1.0, 1.0),
        body_box=BoundingBox.whole((z, y, x)),
        shape_zyx=(z, y, x),
    )
    organs = tuple(range(1, ORGANS + 1))
    record = CaseRecord.labeled(
        case_id="case", preprocessing_hash="", grid=grid, label_zyx=label, organs=ORGANS, supervised=organs
    )
    store.write(record, image, label)
    return store


def measured(
    store: CaseStore, plan: StagePlan, strength: str, count: int, turns: int, gpu: torch.device | None
) -> dict[str, list[float]]:
    """Milliseconds a sample, per turn, by what was done."""
    here, there = (sampler(store, plan, strength, on_device=on_device) for on_device in (False, True))
    in_torch = DeviceAugmentation(torch.device("cpu"))
    found: dict[str, list[float]] = {"loader": [], "read": [], "torch": []}

    def batches(turn: int) -> list[ReadBatch]:
        return [there[(turn * count + place, 0)] for place in range(count)]  # type: ignore[misc]

    for turn in range(turns + 1):  # the first one opens the files
        taken = {
            "loader": timed(lambda place: pickle.dumps(here[(turn * count + place, 0)]), count),  # noqa: B023
            "read": timed(lambda place: pickle.dumps(there[(turn * count + place, 0)]), count),  # noqa: B023
        }
        few = batches(turn)[: max(count // 2, 20)]
        taken["torch"] = timed(lambda place: in_torch(few[place]), len(few))  # noqa: B023
        for kind, milliseconds in taken.items():
            if turn:
                found[kind].append(milliseconds)
    if gpu is not None:
        found["gpu"] = [on_gpu(there, count, gpu) for _ in range(turns + 1)][1:]
    return found


def timed(work: Callable[[int], object], count: int) -> float:
    started = time.process_time()
    for place in range(count):
        work(place)
    return (time.process_time() - started) / count * 1000


def on_gpu(there: PatchSampler, count: int, gpu: torch.device) -> float:
    """Milliseconds a patch, from pinned memory to all that the network sees."""
    batches = list(build_loader(there, AddressSampler(range(min(count // BATCH, 50)), range(BATCH)), 0, pin=True))
    augment = DeviceAugmentation(gpu)
    augment(batches[0])
    synchronize(gpu)
    started = time.perf_counter()
    for batch in batches:
        augment(batch)
    synchronize(gpu)
    return (time.perf_counter() - started) / len(batches) / BATCH * 1000


def sampler(store: CaseStore, plan: StagePlan, strength: str, *, on_device: bool) -> PatchSampler:
    case = TrainingCase(case_id="case", supervised=tuple(range(1, ORGANS + 1)), augmentation=strength)
    permutation = tuple(range(ORGANS + 1))
    augmentation = Augmentation(plan.patch_zyx, plan.spacing_zyx_mm, strength, (2,), permutation)
    return PatchSampler(
        store,
        [case],
        plan,
        foreground_share=0.5,
        region_jitter_mm=5.0,
        outside_share=1.0,
        augmentations={strength: augmentation},
        organs=tuple((index,) for index in range(1, ORGANS + 1)),
        seed=0,
        on_device=on_device,
    )


def row(size: str, plan: StagePlan, strength: str, found: dict[str, list[float]]) -> str:
    def told(kind: str) -> str:
        if kind not in found:
            return "–"
        times = found[kind]
        digits = 2 if statistics.median(times) < 10 else 0
        return f"{statistics.median(times):.{digits}f} ({min(times):.{digits}f}–{max(times):.{digits}f})"

    def rate(kind: str) -> str:
        return f"{1000 / statistics.median(found[kind]):.3g}"

    patch = "×".join(map(str, plan.patch_zyx))
    return (
        f"| {size}: {patch} | {strength} | {told('loader')} | {rate('loader')} | {told('read')} | {rate('read')} "
        f"| {told('torch')} | {told('gpu')} |"
    )


if __name__ == "__main__":
    main()
