"""What scribbles are worth: ACDC with 7 labeled patients, dense labels against lines of a few percent of the voxels.

    dense       every voxel labeled
    scribbles   lines in every class of every slice, all else `ignore`
    scattered   the same but for background, as many voxels of which are short lines all over the slice
    background  the lines of `scribbles`, all else called background

The lines are made from the real labels, after the manner of WSL4MIS: in every slice a random curve in every class,
background among them, until it covers a share of the class. Plans, network and steps are those of one arm as of the
others (the spacing and sizes of the images decide, not the labels): one stage, half of the preset's features, patches
of 8×96×96 voxels, fold 'all', no mirroring left to right. Dice is of test volumes with dense labels.

    OMP_NUM_THREADS=1 python benchmarks/scribbles.py --iterations 300 --test 20
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import running
from scipy import ndimage

from flaresemi.files import write_text
from flaresemi.io.images import read_label_map, write_label_map

LABELS = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}
IGNORE = 4

#: Share of the voxels of a class in a slice that its line covers, and the fewest voxels of one.
SHARES = {0: 0.01, 1: 0.04, 2: 0.06, 3: 0.04}
FEWEST = 5

#: Voxels of 8 × 1.5 × 1.5 mm.
PATCH = (8, 96, 96)

#: Voxels of a short line.
SHORT = 25

ARMS = ("dense", "scribbles", "scattered", "background")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Voxels of the labeled volumes, and those that a line covers."""

    all: int
    covered: int


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--test", type=int, default=20, help="test volumes")
    parser.add_argument("--seed", type=int, default=0, help="of the lines")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    options = parser.parse_args()
    data = running.need(running.SHARED / "acdc")
    bench = running.Bench("scribbles", options.work)
    tests = sorted((data / "labelsTs").glob("*.nii.gz"))[: options.test]
    for arm in options.arms:
        folder = bench.work / arm
        counted = make_dataset(folder, data, arm, tests, options.seed)
        place = ("-d", folder, "-w", folder / "flaresemi")
        steps = (("--iterations", options.iterations, "--validations", "0"), ("--loader-workers", "1", "--continue"))
        bench.command(
            f"{arm} plan",
            "flaresemi_plan_and_preprocess",
            *place,
            "--preset",
            "small",
            "--stages",
            "one",
            "--workers",
            "1",
        )
        running.halve_features(folder / "flaresemi" / "plans.json", PATCH)
        bench.command(f"{arm} prepare", "flaresemi_plan_and_preprocess", *place, "--workers", "1")
        bench.command(f"{arm} train", "flaresemi_train", "FINE", "all", *place, *steps[0], *steps[1])
        predictions = bench.work / f"{arm}_predictions"
        bench.command(
            f"{arm} predict", "flaresemi_predict", "-i", folder / "imagesTs", "-o", predictions, *place,
            "--fold", "all", "--engine", "torch", "--continue",
        )  # fmt: skip
        summary = bench.work / f"{arm}.json"
        bench.command(
            f"{arm} evaluate", "flaresemi_evaluate", "-p", predictions, "-r", folder / "labelsTs", "-o", summary,
            "-d", folder, "--allow-missing",
        )  # fmt: skip
        bench.record(
            arm,
            share=counted.covered / counted.all,
            dice=scores(summary),
            volumes=len(tests),
            iterations=options.iterations,
        )
        report(bench)


def make_dataset(folder: Path, data: Path, arm: str, tests: list[Path], seed: int) -> Counted:
    """Writes the labels of the 7 patients as an arm has them; images and test labels are links."""
    names = json.loads((data / "split.json").read_text(encoding="utf-8"))["labeled_7_patients"]
    labels = LABELS | ({"ignore": IGNORE} if arm == "scribbles" else {})
    description = {"channel_names": {"0": "MR"}, "labels": labels, "mirror_pairs": None}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
    for label in tests:
        running.link_or_copy(label, folder / "labelsTs" / label.name)
        image = label.name.replace(".nii.gz", "_0000.nii.gz")
        running.link_or_copy(data / "imagesTs" / image, folder / "imagesTs" / image)
    voxels = covered = 0
    for number, name in enumerate(names):
        image = f"{name}_0000.nii.gz"
        running.link_or_copy(data / "imagesTr" / image, folder / "imagesTr" / image)
        dense = read_label_map(data / "labelsTr" / f"{name}.nii.gz", {})
        lines = scribbled(dense.array_zyx, np.random.default_rng((seed, number)), arm == "scattered")
        voxels, covered = voxels + lines.size, covered + int(np.count_nonzero(lines != IGNORE))
        if arm == "background":
            lines[lines == IGNORE] = 0
        target = folder / "labelsTr" / f"{name}.nii.gz"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_label_map(target, dense.array_zyx.astype(np.uint8) if arm == "dense" else lines, dense.source)
    return Counted(all=voxels, covered=voxels if arm == "dense" else covered)


def scribbled(dense_zyx: np.ndarray, generator: np.random.Generator, scattered: bool) -> np.ndarray:
    """A curve in every class of every slice, or short ones in background; all else is `IGNORE`, uint8."""
    lines = np.full(dense_zyx.shape, IGNORE, np.uint8)
    for dense, target in zip(dense_zyx, lines, strict=True):
        for value, share in SHARES.items():
            mask = dense == value
            if mask.any():
                voxels = max(FEWEST, share * np.count_nonzero(mask))
                pieces = max(1, round(voxels / SHORT)) if scattered and value == 0 else 1
                for _ in range(pieces):
                    target[curve(mask, voxels / pieces, generator)] = value
    return lines


def curve(mask: np.ndarray, voxels: float, generator: np.random.Generator) -> np.ndarray:
    """A random walk that keeps its direction, inside of a mask and off its border where there is room; bool."""
    inner = ndimage.binary_erosion(mask, iterations=2)
    room = inner if inner.any() else mask
    covered = np.zeros(mask.shape, bool)
    place, angle = start(room, generator)
    for _ in range(40 * int(voxels)):
        covered[int(place[0]), int(place[1])] = True
        if np.count_nonzero(covered) >= voxels:
            break
        angle += generator.normal(0, 0.35)
        for _ in range(12):
            ahead = place + 0.9 * np.array([np.sin(angle), np.cos(angle)])
            y, x = (int(value) for value in ahead)
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and room[y, x]:
                place = ahead
                break
            angle += generator.uniform(-1.2, 1.2)
        else:
            place, angle = start(room, generator)
    return covered


def start(room: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """A random place of a mask, and a direction."""
    places = np.argwhere(room)
    return places[generator.integers(len(places))] + 0.5, float(generator.uniform(0, 2 * np.pi))


def scores(summary: Path) -> dict[str, float]:
    """Mean Dice of every organ, and of all."""
    found = json.loads(summary.read_text(encoding="utf-8"))
    return {organ["name"]: organ["dice"]["mean"] for organ in found["organs"]} | {"mean": found["mean_dice"]}


def report(bench: running.Bench) -> None:
    done = {arm: bench.steps[arm] for arm in ARMS if arm in bench.steps}
    facts = next(iter(done.values()))
    names = list(facts["dice"])
    lines = [
        f"# Scribbles: ACDC, 7 labeled patients (14 volumes), {facts['iterations']} steps an arm, "
        f"{facts['volumes']} test volumes with dense labels",
        "",
        "Dice; the last column is the share of the labeled volumes' voxels that training was told of.",
        "",
        f"| labels | {' | '.join(names)} | annotated |",
        f"|---|{'---:|' * (len(names) + 1)}",
    ]
    for arm, found in done.items():
        dice = " | ".join(f"{found['dice'][name]:.3f}" for name in names)
        share = "all, wrongly" if arm == "background" else f"{100 * found['share']:.3g} %"
        lines.append(f"| {arm} | {dice} | {share} |")
    bench.report("\n".join(lines))


if __name__ == "__main__":
    main()
