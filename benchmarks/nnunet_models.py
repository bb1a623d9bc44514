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
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from against_nnunet import ENVIRONMENT, ensure_environment
from running import SHARED, Bench, parser

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to train with nnU-Net: dataset, network, configuration, folds, and the largest patch."""

    dataset: str
    source: str
    kind: str = "plain"
    configuration: str = "3d_fullres"
    folds: tuple[int, ...] = (0,)
    patch: tuple[int, int, int] = (40, 56, 40)
    steps: int = 60
    lowres: bool = False


HIPPOCAMPUS, OPENKBP, ACDC = "Dataset001_Hippocampus", "Dataset002_OpenKBP", "Dataset003_ACDC"

MODELS = {
    "hippocampus, plain": Model(HIPPOCAMPUS, "hippocampus", lowres=True),
    "hippocampus, ResEnc": Model(HIPPOCAMPUS, "hippocampus", "residual", lowres=True),
    "hippocampus, two folds": Model(HIPPOCAMPUS, "hippocampus", folds=(0, 1), lowres=True),
    "hippocampus, 3d_lowres": Model(HIPPOCAMPUS, "hippocampus", configuration="3d_lowres", lowres=True),
    "openkbp, plain": Model(OPENKBP, "openkbp", patch=(32, 64, 64), steps=80),
    "openkbp, ResEnc": Model(OPENKBP, "openkbp", "residual", patch=(32, 64, 64), steps=80),
    "acdc, plain": Model(ACDC, "acdc", patch=(16, 128, 128)),
}

PLANS = {"plain": "nnUNetPlans", "residual": "nnUNetResEncUNetMPlans"}

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

    def _measured(self, step: str, words: list[str], environment: dict[str, str]) -> dict:
        if step in self.bench.steps:
            return self.bench.steps[step]
        print(f"[{self.bench.name}] {step}", flush=True)
        with open(self.bench.work / f"{step.replace(' ', '_')}.log", "w", encoding="utf-8") as log:
            code = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
            _, status, usage = os.wait4(code.pid, 0)
        if status:
            raise SystemExit(f"{step} failed; see {log.name}")
        facts = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_rss_mib": usage.ru_maxrss / 1024}
        self.bench.record(step, **facts)
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
    """Trains a model, predicts in all ways, and compares each with nnU-Net."""
    work, source = sides.bench.work, SHARED / model.source
    plan = {"name": model.dataset, "source": str(source), "cases": 20, "patch": model.patch, "lowres": model.lowres}
    sides.nnunet(f"plans of {model.dataset}", "make_plans", plan | {"kinds": ["plain", "residual"]})
    for fold in model.folds:
        task = {"name": model.dataset, "kind": model.kind, "configuration": model.configuration, "fold": fold}
        step = f"training of {model.dataset} {model.kind} {model.configuration} fold {fold}"
        sides.nnunet(step, "train", task | {"steps": model.steps})
    folder = work / "results" / model.dataset / f"nnUNetTrainer__{PLANS[model.kind]}__{model.configuration}"
    images = sorted((source / "imagesTr").glob("*_0000.nii.gz"))[-options.images :]
    listed = work / f"{model.dataset}.txt"
    listed.write_text("".join(f"{path}\n" for path in images))
    outputs = [str(work / name / "nnU-Net" / path.name.removesuffix("_0000.nii.gz")) for path in images]
    Path(outputs[0]).parent.mkdir(parents=True, exist_ok=True)
    task = {"model": str(folder), "folds": model.folds, "mirroring": True, "images": [str(path) for path in images]}
    rows = [
        {"model": name, "way": "nnU-Net"} | sides.nnunet(f"{name}; nnU-Net", "predict", task | {"outputs": outputs})
    ]
    for way, words in WAYS.items():
        out = work / name / way
        found = sides.flaresemi(f"{name}; {way}", folder, model.folds, listed, out, words)
        rows.append({"model": name, "way": way} | found | agreement(Path(outputs[0]).parent, out))
    return rows


def agreement(one: Path, other: Path) -> dict:
    """Share of voxels with the same label, and the mean Dice of every organ over all images."""
    same = total = 0
    dice: dict[int, list[float]] = {}
    for path in sorted(one.glob("*.nii.gz")):
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / path.name))) for folder in (one, other))
        same, total = same + int((a == b).sum()), total + a.size
        for organ in set(np.unique(a)) | set(np.unique(b)) - {0}:
            both = int((a == organ).sum()) + int((b == organ).sum())
            if organ:
                dice.setdefault(int(organ), []).append(2 * int(((a == organ) & (b == organ)).sum()) / both)
    return {"same": same / total, "dice": {organ: float(np.mean(found)) for organ, found in sorted(dice.items())}}


def _table(rows: list[dict]) -> list[str]:
    lines = [
        "Labels of flaresemi against those of nnU-Net 2.8.1, and what both took, with the whole process: imports,",
        "loading, reading, writing. One thread each. Shown is the organ with the lowest mean Dice over the images.",
        "",
        "| model | way | same voxels | lowest Dice of an organ | processor s | peak RSS MiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        same = f"{100 * row['same']:.4f} %" if "same" in row else ""
        lowest = f"{min(row['dice'].values()):.5f}" if row.get("dice") else ""
        facts = f"{row['cpu_seconds']:.0f} | {row['peak_rss_mib']:.0f} |"
        lines.append(f"| {row['model']} | {row['way']} | {same} | {lowest} | {facts}")
    return lines


if __name__ == "__main__":
    main()
