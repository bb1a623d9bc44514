"""Models of nnU-Net v2 in flaresemi against nnU-Net itself: the same labels? In what time and memory?

nnU-Net plans and trains some models (minutes each, they need not be good) in an environment of its own; then both sides
predict the same images, one thread each, in turn, each in a process of its own, and so do our faster ways. Seconds are
those of the processor, since the machine may have other work; memory is the largest resident part of the process.

    python benchmarks/nnunet_models.py [--python NNUNET_PYTHON] [--models NAME ...]

Results: results/nnunet_models.md
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from against_nnunet import ENVIRONMENT, ensure_environment
from running import SHARED, Bench, parser, spent

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to train with nnU-Net: dataset, network, configuration, folds, the largest patch, the features of its
    first level, other labels.
    """

    dataset: str
    source: str
    kind: str = "plain"
    configuration: str = "3d_fullres"
    folds: tuple[int | str, ...] = (0,)
    patch: tuple[int, int, int] = (40, 56, 40)
    steps: int = 120
    lowres_steps: int = 80
    width: int = 16
    lowres: bool = False
    foreground: float = 0.33
    cases: int = 20
    description: dict = dataclasses.field(default_factory=dict)


HIPPOCAMPUS, OPENKBP, ACDC = "Dataset001_Hippocampus", "Dataset002_OpenKBP", "Dataset003_ACDC"
REGIONS = "Dataset004_HippocampusRegions"

#: The whole of it, and its front: "whole" is written as 2, "anterior" over it as 1.
WHOLE_AND_FRONT = {"labels": {"background": 0, "whole": [1, 2], "anterior": 1}, "regions_class_order": [2, 1]}

OPENKBP_SIZES: dict = {"patch": (32, 64, 64), "steps": 300, "lowres_steps": 1600, "width": 8, "lowres": True}

#: Small, so that some minutes are enough.
QUICK: dict = {"patch": (32, 40, 32), "steps": 80, "width": 8}

MODELS = {
    "hippocampus, plain, trained": Model("Dataset011_Hippocampus", "hippocampus", steps=450, width=8, cases=40),
    "openkbp, plain, trained": Model(
        "Dataset012_OpenKBP", "openkbp", patch=(32, 64, 64), steps=1400, width=8, foreground=1.0, cases=30
    ),
    "openkbp, ResEnc, trained": Model(
        "Dataset012_OpenKBP", "openkbp", "residual", patch=(32, 64, 64), steps=1000, width=8, foreground=1.0, cases=30
    ),
    "hippocampus, 3d_lowres": Model(HIPPOCAMPUS, "hippocampus", "plain", "3d_lowres", ("all",), lowres=True, **QUICK),
    "hippocampus, cascade": Model(
        HIPPOCAMPUS, "hippocampus", "plain", "3d_cascade_fullres", ("all",), lowres=True, **QUICK
    ),
    "hippocampus, ResEnc, two folds": Model(HIPPOCAMPUS, "hippocampus", "residual", folds=(0, 1), lowres=True, **QUICK),
    "hippocampus, regions": Model(REGIONS, "hippocampus", description=WHOLE_AND_FRONT, **QUICK),
    "openkbp, 3d_lowres": Model(OPENKBP, "openkbp", "plain", "3d_lowres", ("all",), **OPENKBP_SIZES),
    "openkbp, cascade": Model(OPENKBP, "openkbp", "plain", "3d_cascade_fullres", ("all",), **OPENKBP_SIZES),
    "acdc, plain": Model(ACDC, "acdc", patch=(16, 128, 128), steps=60),
}

PLANS = {"plain": "nnUNetPlans", "residual": "nnUNetResEncUNetMPlans"}

#: nnU-Net with one change: it sums windows in single precision.
SINGLE = "nnU-Net, sums in single precision"

#: Our ways to predict, by name, and the options that choose them.
WAYS = {
    "as nnU-Net, torch": ["--engine", "torch"],
    "as nnU-Net, OpenVINO": ["--engine", "openvino"],
    "bf16": ["--engine", "openvino", "--precision", "bf16"],
    "larger windows": ["--engine", "openvino", "--window", "auto"],
    "without mirroring": ["--engine", "openvino", "--no-tta"],
    "without mirroring, larger windows": ["--engine", "openvino", "--no-tta", "--window", "auto"],
}


class Sides:
    """Runs both sides; every step once."""

    def __init__(self, bench: Bench, python: Path) -> None:
        self.bench = bench
        self.python = python
        names = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        places = {name: str(bench.work / folder) for name, folder in names.items()}
        single = {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
        self.environment = os.environ | places | single

    def nnunet(self, step: str, work: str, task: dict) -> dict:
        """A piece of work of nnU-Net's side."""
        words = [str(self.python), str(HERE / "sides" / "nnunet_models_side.py"), work, json.dumps(task)]
        environment = self.environment | ({"nnUNet_n_proc_DA": "1"} if work == "make_plans" else {})
        return self._measured(step, words, environment)

    def train(self, model: Model, configuration: str) -> Path:
        """Trains the folds of a configuration; gives its folder."""
        for fold in model.folds:
            task = {"name": model.dataset, "kind": model.kind, "configuration": configuration, "fold": fold}
            task["foreground"] = model.foreground
            step = f"training of {model.dataset} {model.kind} {configuration} fold {fold}"
            steps = model.lowres_steps if configuration == "3d_lowres" else model.steps
            self.nnunet(step, "train", task | {"steps": steps})
        return self.bench.work / "results" / model.dataset / f"nnUNetTrainer__{PLANS[model.kind]}__{configuration}"

    def _measured(self, step: str, words: list[str], environment: dict[str, str]) -> dict:
        if step in self.bench.steps:
            return self.bench.steps[step]
        print(f"[{self.bench.name}] {step}", flush=True)
        found = spent(words, self.bench.work / f"{step.replace(' ', '_')}.log", environment)
        self.bench.record(step, cpu_seconds=found.cpu_seconds, peak_rss_mib=found.peak_mib)
        return self.bench.steps[step]

    def flaresemi(
        self, step: str, model: Path, folds: tuple[int, ...], images: Path, out: Path, way: list[str]
    ) -> dict:
        """A prediction of ours."""
        program = str(Path(sys.executable).parent / "flaresemi_predict")
        words = [program, "-m", str(model), "-i", str(images), "-o", str(out), "--threads", "1", *way]
        words += ["--fold", *map(str, folds), "--overwrite", "--single-process"]
        return self._measured(step, words, self.environment)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--python", type=Path, help="of an environment with nnunetv2 (default: made in benchmarks)")
    made.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    made.add_argument("--images", type=int, default=6, help="images to predict, the last of the training folder")
    options = made.parse_args()
    bench = Bench("nnunet_models", options.work)
    sides = Sides(bench, options.python or ensure_environment() or ENVIRONMENT / "bin" / "python")
    rows = [row for name in options.models for row in _compare(sides, name, MODELS[name], options)]
    bench.report("\n".join(_table(rows)))


def _compare(sides: Sides, name: str, model: Model, options: argparse.Namespace) -> list[dict]:
    """Trains a model, predicts in all ways, and compares each with nnU-Net, in both precisions of its sums."""
    work, source = sides.bench.work, SHARED / model.source
    kinds = sorted({other.kind for other in MODELS.values() if other.dataset == model.dataset})
    plan = {
        "name": model.dataset,
        "source": str(source),
        "cases": model.cases,
        "patch": model.patch,
        "width": model.width,
    }
    plan |= {"kinds": kinds, "lowres": model.lowres, "description": model.description}
    sides.nnunet(f"plans of {model.dataset}", "make_plans", plan)
    previous = sides.train(model, "3d_lowres") if "cascade" in model.configuration else None
    folder = sides.train(model, model.configuration)
    images = sorted((source / "imagesTr").glob("*_0000.nii.gz"))[-options.images :]
    listed = work / f"{model.dataset}.txt"
    listed.write_text("".join(f"{path}\n" for path in images))
    task = {"model": str(folder), "folds": model.folds, "mirroring": True, "images": [str(path) for path in images]}
    task |= {"previous": previous and str(previous)}
    rows, theirs = [], {}
    for way, single in (("nnU-Net", False), (SINGLE, True)):
        theirs[way] = work / name / way
        theirs[way].mkdir(parents=True, exist_ok=True)
        outputs = [str(theirs[way] / path.name.removesuffix("_0000.nii.gz")) for path in images]
        found = sides.nnunet(f"{name}; {way}", "predict", task | {"outputs": outputs, "single_sums": single})
        rows.append({"model": name, "way": way} | found)
    for way, words in WAYS.items():
        rows.append({"model": name, "way": way})
        out = work / name / way
        rows[-1] |= sides.flaresemi(f"{name}; {way}", folder, model.folds, listed, out, words)
    for row in rows:
        out = work / name / row["way"]
        row["against"] = {way: agreement(other, out) for way, other in theirs.items() if way != row["way"]}
        row["quality"] = agreement(source / "labelsTr", out)["dice"]
    return rows


def agreement(one: Path, other: Path) -> dict:
    """Share of voxels with the same label, and the mean Dice of every organ over all images of the second folder."""
    same = total = 0
    dice: dict[int, list[float]] = {}
    for path in sorted(other.glob("*.nii.gz")):
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / path.name))) for folder in (one, other))
        same, total = same + int((a == b).sum()), total + a.size
        for organ in (set(np.unique(a)) | set(np.unique(b))) - {0}:
            both = int((a == organ).sum()) + int((b == organ).sum())
            dice.setdefault(int(organ), []).append(2 * int(((a == organ) & (b == organ)).sum()) / both)
    return {"same": same / total, "dice": {organ: float(np.mean(found)) for organ, found in sorted(dice.items())}}


def _table(rows: list[dict]) -> list[str]:
    lines = [
        "Labels of flaresemi against those of nnU-Net 2.8.1, and what both took, with the whole process: imports,",
        "loading, reading, writing. One thread each. nnU-Net trained the models for some minutes: far from good.",
        "Same: share of voxels with the same label, and the organ with the lowest mean Dice over the images, between",
        "the two. Dice: of the way's labels with the reference's, mean over organs and images.",
        "",
        f"| model | way | as nnU-Net | as {SINGLE} | Dice | processor s | peak RSS MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        same = [_told(row["against"].get(way)) for way in ("nnU-Net", SINGLE)]
        quality = f"{np.mean(list(row['quality'].values())):.4f}"
        facts = f"{row['cpu_seconds']:.0f} | {row['peak_rss_mib']:.0f} |"
        lines.append(f"| {row['model']} | {row['way']} | {' | '.join(same)} | {quality} | {facts}")
    return lines


def _told(found: dict | None) -> str:
    return "" if found is None else f"{100 * found['same']:.4f} %, {min(found['dice'].values(), default=1):.5f}"


if __name__ == "__main__":
    main()
