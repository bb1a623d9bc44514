"""What `--init-from` is worth: a model of five organs of openkbp as the start for the two others, from few labels.

The first model learns brainstem, spinal cord, mandible, esophagus and larynx from 30 cases. Then both parotids are
learned from the four cases that it did not see, with its weights as a start and from scratch: the same plan, seed,
patches and steps. Half of the preset's features, patches of 16×48×48 voxels, one stage, fold 'all', last weights.
Dice is of the 17 test cases; the difference is paired, case by case.

    OMP_NUM_THREADS=1 python benchmarks/init_from.py [--seeds 0 1] [--first 300] [--iterations 200]

Every step is run once and a stopped one goes on: start the same command again.
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import running
import torch

from flaresemi.evaluation.paired import HeldOutDice, paired_difference
from flaresemi.evaluation.summary import evaluate_folders, load_summary, save_summary
from flaresemi.files import write_text
from flaresemi.inference.cascade import Segmenter
from flaresemi.io.images import read_label_map, write_label_map
from flaresemi.plans import Stage, load_plans
from flaresemi.training.config import TrainingConfig
from flaresemi.training.resuming import has_state
from flaresemi.training.task import load_task
from flaresemi.training.trainer import Trainer
from flaresemi.workspace import ModelFolder, Workspace

#: What each model is taught, by openkbp's values.
KNOWN = {"brainstem": 1, "spinal cord": 2, "mandible": 5, "esophagus": 6, "larynx": 7}
NEW = {"right parotid": 3, "left parotid": 4}

#: Labeled cases of the new organs.
FEW = 4

PATCH_ZYX = (16, 48, 48)


class Comparison:
    """The data, the trainings and their scores."""

    def __init__(self, work: Path, first: int) -> None:
        self.bench = running.Bench("init_from", work)
        self.source = running.need(running.SHARED / "openkbp")
        self.first = first
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (self.source / "labelsTr").glob("*.nii.gz"))
        few = cases[:: len(cases) // FEW][:FEW]
        self.cases = {"known": [case for case in cases if case not in few], "new": few}
        self.tests = sorted(path.name.removesuffix(".nii.gz") for path in (self.source / "labelsTs").glob("*.nii.gz"))

    def prepare(self) -> None:
        """Makes a dataset of each part of the organs, plans and prepares it."""
        for kind, organs in (("known", KNOWN), ("new", NEW)):
            data = self.bench.work / f"data_{kind}"
            for case in self.cases[kind]:
                image, target = f"{case}_0000.nii.gz", data / "labelsTr" / f"{case}.nii.gz"
                running.link_or_copy(self.source / "imagesTr" / image, data / "imagesTr" / image)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    labels = read_label_map(self.source / "labelsTr" / target.name, {})
                    kept = np.isin(labels.array_zyx, list(organs.values()))
                    write_label_map(target, np.where(kept, labels.array_zyx, 0).astype(np.uint8), labels.source)
            description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **organs}}
            write_text(data / "dataset.json", json.dumps(description))
            words = ("-d", data, "-w", self.bench.work / kind, "--preset", "small", "--stages", "one", "--workers", "1")
            self.bench.command(f"plan {kind}", "flaresemi_plan_and_preprocess", *words)
            running.halve_features(self.bench.work / kind / "plans.json", PATCH_ZYX)

    def train(self, kind: str, name: str, config: TrainingConfig) -> ModelFolder:
        """Trains a model, once; gives its folder."""
        folder = ModelFolder(self.bench.work / "models" / name.replace(" ", "_") / "fold_all" / "FINE")
        if name in self.bench.steps:
            return folder
        task = dataclasses.replace(load_task(Workspace(self.bench.work / kind), Stage.FINE, "all"), folder=folder)
        started = time.process_time()
        Trainer(task, config, device=torch.device("cpu")).fit(resume=has_state(folder))
        seconds = time.process_time() - started
        self.bench.record(name, seconds=seconds, command=f"train {name}", made=running.when_and_what())
        return folder

    def run(self, seed: int, iterations: int) -> None:
        """Both arms of a seed, scored."""
        common = {"validations": 0, "batch_size": 2, "loader_workers": 0}
        first = self.train("known", "first", TrainingConfig(iterations=self.first, **common))
        for arm, start in (("scratch", None), ("init-from", str(first.final))):
            name = f"{arm} {seed} {iterations}"
            config = TrainingConfig(iterations=iterations, seed=seed, init_from=start, **common)
            folder = self.train("new", name, config)
            if not self.summary(name).exists():
                self._score(name, folder)

    def _score(self, name: str, folder: ModelFolder) -> None:
        segmenter = Segmenter.load(folder.root.parents[1])
        predictions = self.bench.work / "predictions" / name.replace(" ", "_")
        files = {case: predictions / f"{case}.nii.gz" for case in self.tests}
        for case, file in files.items():
            if not file.exists():
                segmenter.predict_file([self.source / "imagesTs" / f"{case}_0000.nii.gz"], file)
        labels = load_plans(self.bench.work / "new" / "plans.json").labels
        references = self.bench.work / "labelsTs"
        for case in self.tests:
            target = references / f"{case}.nii.gz"
            if not target.exists():
                references.mkdir(exist_ok=True)
                found = read_label_map(self.source / "labelsTs" / target.name, {})
                kept = np.isin(found.array_zyx, list(NEW.values()))
                write_label_map(target, np.where(kept, found.array_zyx, 0).astype(np.uint8), found.source)
        save_summary(self.summary(name), evaluate_folders(files, references, labels, workers=1))

    def summary(self, name: str) -> Path:
        return self.bench.work / f"{name.replace(' ', '_')}.json"

    def report(self, seeds: list[int], lengths: list[int]) -> None:
        """Dice by organ, and the gain with its interval."""
        lines = [
            "# A start from a model of other organs",
            "",
            f"openkbp: a model of {len(KNOWN)} organs ({', '.join(KNOWN)}; {len(self.cases['known'])} cases, "
            f"{self.first} steps), then two others from {FEW} cases. Dice on {len(self.tests)} test cases. One thread, "
            "two patches of 16×48×48 a step, half of the features of preset `small`; the arms of a seed share patches.",
            "",
            f"| steps | seed | arm | {' | '.join(NEW)} | mean | minus scratch (95 %) |",
            f"|---:|---:|---|{'---:|' * (len(NEW) + 2)}",
        ]
        for iterations in lengths:
            for seed in seeds:
                names = [f"{arm} {seed} {iterations}" for arm in ("scratch", "init-from")]
                if not all(self.summary(name).exists() for name in names):
                    continue
                gain = paired_difference(*(self._dice(name) for name in names))
                for name, change in zip(names, ("", f"{gain.mean:+.4f} ± {gain.half_width:.4f}"), strict=True):
                    summary = load_summary(self.summary(name))
                    dice = {organ.name: organ.dice.mean for organ in summary.organs if organ.dice}
                    cells = " | ".join(f"{dice[organ]:.4f}" for organ in NEW)
                    arm = name.split()[0]
                    lines.append(f"| {iterations} | {seed} | {arm} | {cells} | {summary.mean_dice:.4f} | {change} |")
        self.bench.report("\n".join(lines))

    def _dice(self, name: str) -> HeldOutDice:
        cases = load_summary(self.summary(name)).cases
        return {
            case.case_id: {organ: score.dice for organ, score in case.organs.items() if score.dice is not None}
            for case in cases
        }


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--first", type=int, default=300, help="steps of the first model")
    parser.add_argument("--iterations", type=int, nargs="+", default=[200], help="steps on the new organs")
    options = parser.parse_args()
    comparison = Comparison(options.work, options.first)
    comparison.prepare()
    for seed in options.seeds:
        for iterations in options.iterations:
            comparison.run(seed, iterations)
            comparison.report(options.seeds, options.iterations)


if __name__ == "__main__":
    main()
