"""Nested regions on ACDC: plain labels, regions by softmax over the values, and nnU-Net's way, a sigmoid per region.

The regions are the left ventricle, what its wall encloses (left ventricle and myocardium) and the right ventricle. Of
seven patients the labels are known (14 volumes); the 10 validation patients (20 volumes) are scored by region. The
three arms have the same plan, seed, patches and steps:

    plain     one organ per value, cross-entropy and Dice of the values
    softmax   regions as flaresemi trains them: cross-entropy of the values, Dice of the regions, whose probability is
              the sum of their values'
    sigmoid   as nnU-Net trains regions: an output per region, binary cross-entropy and Dice (over the batch's samples
              one by one, as here); a voxel belongs to a region where its output is positive, and regions are written
              one over the other. For comparison alone: it lives in this file.

Two more are nnU-Net itself, in an environment of its own, with its plans but for patch, batch and width, which are
those of the others, and AdamW: nnunet-plain and nnunet-regions, each for the processor time that `plain` took.

    OMP_NUM_THREADS=1 python benchmarks/regions.py --seeds 0 1 [--iterations 1000] [--arms plain softmax sigmoid]

Every step is run once and a stopped one goes on: start the same command again.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import running
import torch
from against_nnunet import ensure_environment
from nnunet_models import Sides
from torch import nn
from torch.nn import functional

from flaresemi.compute.metering import Clock
from flaresemi.conventions import Convention
from flaresemi.evaluation.summary import evaluate_folders, load_summary, save_summary
from flaresemi.files import write_text
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.restoring import restored_labels
from flaresemi.labels import Members
from flaresemi.plans import Stage, load_plans
from flaresemi.preprocessing.winners import RestoredLabels
from flaresemi.training.config import TrainingConfig
from flaresemi.training.losses import DeepSupervisionLoss
from flaresemi.training.resuming import has_state
from flaresemi.training.task import load_task
from flaresemi.training.trainer import Trainer
from flaresemi.workspace import ModelFolder, Workspace

ARMS = ("plain", "softmax", "sigmoid")

NNUNET_ARMS = {"nnunet-plain": "Dataset021_ACDC", "nnunet-regions": "Dataset022_ACDCRegions"}

PLAIN = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}
REGIONS = {"background": 0, "epicardium": [2, 3], "left ventricle": 3, "right ventricle": 1}
ORDER = [2, 3, 1]

#: A seventh of the voxels that the plan has: the arms are to be compared in minutes.
PATCH_ZYX = (8, 64, 64)


class SigmoidLoss(nn.Module):
    """Binary cross-entropy and Dice per region; the output of background is not used.

    Args:
        organs: The indices of each region.
    """

    def __init__(self, organs: Members) -> None:
        super().__init__()
        self.organs = organs

    def forward(
        self, logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """A loss per sample; all regions are annotated here."""
        logits = logits_bczyx[:, 1:].float()
        inside = [torch.isin(target_bzyx, torch.tensor(indices)) for indices in self.organs]
        target = torch.stack(inside, dim=1).float()
        entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2, 3, 4))
        probability = torch.sigmoid(logits)
        overlap, size = ((each * target).sum(dim=(2, 3, 4)) for each in (probability, torch.ones_like(target)))
        dice = 2 * overlap / (probability.sum(dim=(2, 3, 4)) + size).clamp_min(1e-5)
        present = size > 0
        return entropy + ((1 - dice) * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)


class SigmoidTrainer(Trainer):
    """A training with an output per region."""

    def build_loss(self) -> nn.Module:
        """Of regions that overlap, each by itself."""
        return DeepSupervisionLoss(SigmoidLoss(self.task.labels.members))  # type: ignore[arg-type]


class SigmoidSegmenter(Segmenter):
    """A voxel belongs to a region where its output is positive; regions are written one over the other."""

    def _restored(
        self, grid: StageGrid, clock: Clock, slabs: Iterable[torch.Tensor], region: BoundingBox
    ) -> RestoredLabels:
        written = tuple(self.labels.to_indices(np.array(ORDER)).tolist())
        convention = Convention(orientation="ras", axes=(0, 1, 2), painted=written)
        regions = (slab[1:] for slab in slabs)  # the output of background is not used
        return restored_labels(regions, region, grid, self._fine.plan, convention, clock)


class Comparison:
    """The data, the arms and their scores."""

    def __init__(self, work: Path, iterations: int) -> None:
        self.bench = running.Bench("regions", work)
        self.source = running.need(running.SHARED / "acdc")
        self.iterations = iterations
        split = json.loads((self.source / "split.json").read_text(encoding="utf-8"))
        self.labeled, self.held_out = split["labeled_7_patients"], split["validation"]

    def prepare(self) -> None:
        """Links the labeled cases into a dataset of each kind, plans and prepares them."""
        kinds = {"plain": {"labels": PLAIN}, "regions": {"labels": REGIONS, "regions_class_order": ORDER}}
        for kind, labels in kinds.items():
            data = self.bench.work / f"data_{kind}"
            for case in self.labeled:
                for folder, file in (("imagesTr", f"{case}_0000.nii.gz"), ("labelsTr", f"{case}.nii.gz")):
                    running.link_or_copy(self.source / folder / file, data / folder / file)
            write_text(data / "dataset.json", json.dumps({"channel_names": {"0": "MR"}, **labels, "mirror_pairs": []}))
            words = ("-d", data, "-w", self.bench.work / kind, "--preset", "small", "--stages", "one")
            self.bench.command(f"plan {kind}", "flaresemi_plan_and_preprocess", *words)
            running.halve_features(self.bench.work / kind / "plans.json", PATCH_ZYX)

    def run(self, arm: str, seed: int) -> None:
        """Trains an arm, predicts the held-out cases, and scores them by region."""
        name = f"{arm} {seed} {self.iterations}"
        if name in self.bench.steps:
            return
        workspace = Workspace(self.bench.work / ("plain" if arm == "plain" else "regions"))
        folder = ModelFolder(self.bench.work / "models" / name.replace(" ", "_") / "fold_all" / "FINE")
        task = dataclasses.replace(load_task(workspace, Stage.FINE, "all"), folder=folder)
        config = TrainingConfig(iterations=self.iterations, seed=seed, validations=0, batch_size=2, loader_workers=0)
        kind = SigmoidTrainer if arm == "sigmoid" else Trainer
        started = time.process_time()
        kind(task, config, device=torch.device("cpu")).fit(resume=has_state(folder))
        seconds = time.process_time() - started
        segmenter = (SigmoidSegmenter if arm == "sigmoid" else Segmenter).load(folder.root.parents[1], engine="torch")
        predictions = self.bench.work / "predictions" / name.replace(" ", "_")
        for case in self.held_out:
            image = self.source / "imagesTr" / f"{case}_0000.nii.gz"
            if not (predictions / f"{case}.nii.gz").exists():
                segmenter.predict_file([image], predictions / f"{case}.nii.gz")
        self._score(name, predictions, seconds)

    def run_nnunet(self, arm: str, seed: int) -> None:
        """The same of nnU-Net, as long as `plain` took."""
        name = f"{arm} {seed} {self.iterations}"
        if name in self.bench.steps:
            return
        sides, dataset = Sides(self.bench, ensure_environment()), NNUNET_ARMS[arm]
        kind = {"labels": PLAIN} if arm == "nnunet-plain" else {"labels": REGIONS, "regions_class_order": ORDER}
        plan = {"name": dataset, "source": str(self.source), "names": self.labeled, "patch": PATCH_ZYX, "width": 8}
        sides.nnunet(f"plans of {arm}", "make_plans", plan | {"kinds": ["plain"], "description": kind})
        seconds = self.bench.steps[f"plain {seed} {self.iterations}"]["seconds"]
        task = {"name": dataset, "kind": "plain", "configuration": "3d_fullres", "fold": "all"}
        sides.nnunet(f"training of {name}", "train", task | {"cpu_seconds": seconds, "seed": seed})
        predictions = self.bench.work / "predictions" / name.replace(" ", "_")
        predictions.mkdir(parents=True, exist_ok=True)
        task = {
            "model": str(self.bench.work / "results" / dataset / "nnUNetTrainer__nnUNetPlans__3d_fullres"),
            "folds": ["all"],
            "mirroring": False,
            "images": [str(self.source / "imagesTr" / f"{case}_0000.nii.gz") for case in self.held_out],
            "outputs": [str(predictions / case) for case in self.held_out],
        }
        sides.nnunet(f"prediction of {name}", "predict", task)
        self._score(name, predictions, seconds)

    def _score(self, name: str, predictions: Path, seconds: float) -> None:
        references = {case: self.source / "labelsTr" / f"{case}.nii.gz" for case in self.held_out}
        regions = load_plans(self.bench.work / "regions" / "plans.json").labels
        files = {case: predictions / f"{case}.nii.gz" for case in self.held_out}
        save_summary(self.summary(name), evaluate_folders(files, references, regions, workers=1))
        self.bench.record(name, seconds=seconds, command=f"train {name}", made=running.when_and_what())

    def summary(self, name: str) -> Path:
        return self.bench.work / f"{name.replace(' ', '_')}.json"

    def report(self) -> None:
        """Dice by region of each arm and seed, and the paired difference of the arms' case means."""
        lines = [
            "# Regions: softmax over values or a sigmoid per region",
            "",
            f"ACDC, 7 labeled patients (14 volumes), Dice on the {len(self.held_out)} volumes of the 10 validation "
            "patients. One thread, two patches of 8×64×64 per step, half of the features of preset `small`; the first "
            "three arms of a seed share patches. Seconds are of the processor.",
            "",
            "| arm, seed, steps | left ventricle | epicardium | right ventricle | mean | minus plain (SE) |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name in sorted(name for name in self.bench.steps if name.split()[0] in (*ARMS, *NNUNET_ARMS)):
            summary = load_summary(self.summary(name))
            dice = {organ.name: organ.dice.mean for organ in summary.organs if organ.dice}
            cells = [f"{dice[organ]:.4f}" for organ in ("left ventricle", "epicardium", "right ventricle")]
            base = name.replace(name.split()[0], "plain")
            change = "" if base == name or base not in self.bench.steps else self._change(name, base)
            lines.append(f"| {name} | {' | '.join(cells)} | {summary.mean_dice:.4f} | {change} |")
        self.bench.report("\n".join(lines))

    def _change(self, name: str, base: str) -> str:
        ours, theirs = (
            np.array([np.mean([each.dice for each in case.organs.values()]) for case in load_summary(path).cases])
            for path in (self.summary(name), self.summary(base))
        )
        change = ours - theirs
        return f"{change.mean():+.4f} ({change.std(ddof=1) / np.sqrt(len(change)):.4f})"


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arms", nargs="+", choices=(*ARMS, *NNUNET_ARMS), default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=1000)
    options = parser.parse_args()
    comparison = Comparison(options.work, options.iterations)
    comparison.prepare()
    for seed in options.seeds:
        for arm in options.arms:
            (comparison.run if arm in ARMS else comparison.run_nnunet)(arm, seed)
            comparison.report()


if __name__ == "__main__":
    main()
