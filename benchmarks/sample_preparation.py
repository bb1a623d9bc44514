"""What the preparation of a training's samples costs: supervised, mixed, with pasted boxes, and as these were before.

Samples of few.py's first draw (few-mr or few-ct): four labeled cases with standard augmentation, the others as if their
labels were pseudo-labels, with strong augmentation, half of the samples each. Where a box of another patch is pasted
(half of them), that box alone is read and augmented; until 2026-11-27 a second whole patch was. In processor time of
one process without BLAS threads, so that other work on the machine matters little; the four kinds take turns.
Supervised samples are hashed as well: they must not change. Result: results/sample_preparation_*.md.

    OMP_NUM_THREADS=1 python benchmarks/sample_preparation.py mr
"""

import argparse
import dataclasses
import hashlib
import statistics
import time

import numpy as np
import running
from few import YARDSTICKS, Few

from flaresemi.compute.parallel import one_blas_thread
from flaresemi.geometry import BoundingBox
from flaresemi.io.case_store import CaseStore
from flaresemi.plans import Stage, StagePlan, load_plans
from flaresemi.training.augmentation import STRENGTHS, Augmentation
from flaresemi.training.pasting import PastingSampler
from flaresemi.training.sampling import Batch, PatchSampler, TrainingCase
from flaresemi.workspace import Workspace


class WholePatches(PastingSampler):
    """As it was: a whole second patch is prepared, and a box of it used."""

    def draw(self, case: TrainingCase, generator: np.random.Generator, box: BoundingBox | None = None) -> Batch:
        whole = super().draw(case, generator)
        if box is None:
            return whole
        image, label = whole.image_bczyx[..., *box.slices], whole.label_bzyx[..., *box.slices]
        return dataclasses.replace(whole, image_bczyx=image, label_bzyx=label, second_bczyx=image)


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("yardstick", choices=tuple(YARDSTICKS))
    parser.add_argument("--samples", type=int, default=60, help="of each kind and turn [60]")
    parser.add_argument("--turns", type=int, default=5, help="[5]")
    options = parser.parse_args()
    one_blas_thread()
    few = Few(YARDSTICKS[options.yardstick], options.work)
    few.prepare(0)
    workspace = Workspace(few.folder(0) / "all")
    plans = load_plans(workspace.plans)
    store, plan = CaseStore(workspace.preprocessed(Stage.FINE)), plans.fine
    organs = tuple(range(1, plans.labels.count + 1))
    draw = few.draw(0)
    real = [TrainingCase(case_id=name, supervised=organs, share=0.5 / len(draw.labeled)) for name in draw.labeled]
    pseudo = [
        TrainingCase(
            case_id=name, supervised=organs, share=0.5 / len(draw.hidden), augmentation="strong", is_pseudo=True
        )
        for name in draw.hidden
    ]
    mirrored = plans.labels.mirror_axes((0, 1, 2)), plans.labels.mirror_permutation
    kinds = {
        "supervised": sampler(store, plan, mirrored, real),
        "mixed, nothing pasted": sampler(store, plan, mirrored, real + pseudo),
        "mixed, half pasted: second patches whole": sampler(store, plan, mirrored, real + pseudo, WholePatches),
        "mixed, half pasted: boxes": sampler(store, plan, mirrored, real + pseudo, PastingSampler),
    }
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(options.turns + 1):  # the first one opens the files
        for kind, samples in kinds.items():
            started = time.process_time()
            for iteration in range(options.samples):
                samples[(turn * options.samples + iteration, 0)]
            if turn:
                spent[kind].append((time.process_time() - started) / options.samples * 1000)
    digest = hashlib.sha256()
    for iteration in range(20):
        batch = kinds["supervised"][(iteration, 0)]
        digest.update(batch.image_bczyx.tobytes() + batch.label_bzyx.tobytes())
    medians = {kind: statistics.median(times) for kind, times in spent.items()}
    patch = "×".join(map(str, plan.patch_zyx))
    bench = running.Bench(f"sample_preparation_{few.yardstick.name}", options.work)
    lines = [
        f"# {few.yardstick.name.replace('_', '-')}: preparation of a sample of {patch} voxels",
        "",
        f"{running.when_and_what()}; {options.turns} turns of {options.samples} samples.",
        "",
        "| samples | CPU ms each, median (range) | against supervised |",
        "|---|---:|---:|",
        *(
            f"| {kind} | {medians[kind]:.1f} ({min(times):.1f} to {max(times):.1f}) | "
            f"{medians[kind] / medians['supervised']:.2f} |"
            for kind, times in spent.items()
        ),
        "",
        f"The first 20 supervised samples: sha256 {digest.hexdigest()[:16]}",
    ]
    bench.report("\n".join(lines))


def sampler(
    store: CaseStore,
    plan: StagePlan,
    mirrored: tuple[tuple[int, ...], tuple[int, ...]],
    cases: list[TrainingCase],
    kind: type[PatchSampler] = PatchSampler,
) -> PatchSampler:
    """With the defaults of a training."""
    axes, permutation = mirrored
    augmentations = {
        name: Augmentation(plan.patch_zyx, plan.spacing_zyx_mm, name, axes, permutation) for name in STRENGTHS
    }
    more = {"paste_share": 0.5} if issubclass(kind, PastingSampler) else {}
    settings = {"foreground_share": 0.5, "region_jitter_mm": 5.0, "outside_share": 0.0, "seed": 0}
    return kind(store, cases, plan, augmentations=augmentations, **settings, **more)


if __name__ == "__main__":
    main()
