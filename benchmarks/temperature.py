"""Is the temperature that held-out cases ask for right on other cases? The expected calibration error near organs.

A trained fold predicts its held-out cases, which fit the temperature, and test cases, which it never saw.
Result: results/temperature.md.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import running

from flaresemi.confidence import TEMPERATURES, ConfidenceCounts, fit_temperature
from flaresemi.dataset import Case, load_dataset
from flaresemi.inference.cascade import Segmenter
from flaresemi.io.images import read_label_map
from flaresemi.planning.cases import read_case
from flaresemi.planning.splits import load_splits
from flaresemi.training.confidence import count_confidence
from flaresemi.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "temperature.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a dataset with a trained fold 0, and test_mask/CASE.nii.gz")
    options = parser.parse_args()
    dataset, workspace = load_dataset(options.data), Workspace(options.data / "flaresemi")
    segmenter = Segmenter.load(workspace.root, folds=["0"], device="cpu", precision="fp32", engine="torch")
    held_out = [dataset.case(name) for name in load_splits(workspace.splits).fold("0").validation]
    fitted_on = list(counted(held_out, segmenter, options.data))
    unseen = list(counted(dataset.test, segmenter, options.data))
    fitted = fit_temperature(fitted_on)
    if fitted is None:
        raise SystemExit("fewer than three held-out cases")
    rows = [
        f"| held out | {fitted.cases} | {fitted.voxels} | {fitted.error_before:.4f} | {fitted.error_after:.4f} |",
        f"| test | {len(unseen)} | {sum(case.voxels for case in unseen)} | {error(unseen, 1.0):.4f} | "
        f"{error(unseen, fitted.value):.4f} |",
    ]
    best = TEMPERATURES[int(np.sum([case.losses for case in unseen], axis=0).argmin())]
    lines = [
        f"# {(__doc__ or '').splitlines()[0]}",
        "",
        f"Fold 0 of a demo on phantoms (13 organs). Temperature by the held-out cases: {fitted.value:.3g}; the "
        f"test cases would have asked for {best:.3g}. After: held-out cases each with the temperature of the others.",
        "",
        "| cases | how many | voxels near organs | ECE before | ECE after |",
        "|---|---:|---:|---:|---:|",
        *rows,
        "",
        f"`python benchmarks/temperature.py demo/data`, {running.when_and_what()}, one of two shared cores (AMD EPYC).",
        "",
    ]
    RESULT.write_text("\n".join(lines), encoding="utf-8")


def counted(cases: Iterable[Case], segmenter: Segmenter, data: Path) -> Iterable[ConfidenceCounts]:
    for case in cases:
        image, reference = read_case(case, segmenter.labels)
        if reference is None:
            label_map = read_label_map(data / "test_mask" / f"{case.id}.nii.gz")
            reference = segmenter.labels.to_indices(label_map.array_zyx)
        scores = segmenter.scores(image)
        predicted = segmenter.restore(scores, image.source).indices_zyx
        yield count_confidence(scores.known, predicted, reference, segmenter.labels)


def error(cases: list[ConfidenceCounts], temperature: float) -> float:
    gaps = np.array([case.gaps[TEMPERATURES.index(temperature)] for case in cases]).sum(axis=0)
    return float(np.abs(gaps).sum()) / sum(case.voxels for case in cases)


if __name__ == "__main__":
    main()
