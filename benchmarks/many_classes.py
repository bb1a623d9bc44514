"""What grows with the number of classes: time and peak memory of every command at 2, 14, 117 and 300 classes.

Two synthetic CTs, in which each organ is a box of its own on a lattice in one body; size, preset and memory budget are
the same for all. One thread, one process; few steps: what is measured is the work, not the result. Result:
results/many_classes.md.

    OMP_NUM_THREADS=1 python benchmarks/many_classes.py --shape 300 512 512 --classes 2 14 117 300
"""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import running

from flaresemi.files import write_text
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import write_label_map
from flaresemi.plans import load_plans

#: Of every scan: 300×512×512 voxels of 1.5 × 0.8 × 0.8 mm, or fewer and larger ones.
EXTENT_MM = (450.0, 409.6, 409.6)


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 14, 117, 300], help="background not counted")
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], help="of the scans, (z, y, x)")
    parser.add_argument("--iterations", type=int, default=4)
    options = parser.parse_args()
    bench = running.Bench("many_classes", options.work)
    for classes in options.classes:
        folder = bench.work / str(classes)
        make_dataset(folder, classes, tuple(options.shape))
        place = ("-d", folder, "-w", folder / "flaresemi")
        for name, words in commands(folder, place, options.iterations).items():
            step = f"{classes} {name}"
            if step not in bench.steps:
                bench.record(step, **measured(words, bench.work / f"{step}.log"))
        report(bench, options)


def commands(folder: Path, place: tuple, iterations: int) -> dict[str, tuple]:
    """The commands, by the name of what they do."""
    predicted, summary = folder / "predicted", folder / "summary.json"
    plan = ("flaresemi_plan_and_preprocess", *place, "--preset", "small", "--stages", "one", "--workers", "1")
    train = ("flaresemi_train", "FINE", "all", *place, "--loader-workers", "0", "--restart")
    return {
        "check and plan": (*plan, "--plan-only"),
        "prepare": plan,
        "train 1 step": (*train, "--iterations", 1),
        f"train {1 + iterations} steps": (*train, "--iterations", 1 + iterations),
        "predict": ("flaresemi_predict", "-i", folder / "imagesTs", "-o", predicted, *place, "--fold", "all"),
        "evaluate": ("flaresemi_evaluate", "-p", predicted, "-r", folder / "labelsTs", "-o", summary, "-d", folder),
        "evaluate, overlay": (
            "flaresemi_evaluate", "-p", predicted, "-r", folder / "labelsTs", "-o", summary, "-d", folder,
            "--overlays", 1,
        ),
    }  # fmt: skip


def measured(words: tuple, log: Path) -> dict[str, object]:
    """Runs a command of this environment; its seconds of processor time and clock, and its peak memory in GiB."""
    line = [str(Path(sys.executable).parent / words[0]), *map(str, words[1:])]
    print(shlex.join(line[1:]), flush=True)
    spent = running.spent(line, log)
    return {
        "seconds": spent.seconds,
        "processor": spent.cpu_seconds,
        "gib": spent.peak_mib / 1024,
        "made": running.when_and_what(),
    }


def make_dataset(folder: Path, classes: int, shape: tuple[int, int, int]) -> None:
    """Two scans, one of which is the test case, too."""
    if (folder / "dataset.json").exists():
        return
    label = lattice(shape, classes)
    image = np.where(body(shape), np.int16(20), np.int16(-1000))
    image[label > 0] = (60 + 7 * (label % 23))[label > 0]
    image += np.random.default_rng(0).integers(-10, 11, shape, dtype=np.int16)
    spacing = tuple(extent / size for extent, size in zip(EXTENT_MM, shape, strict=True))
    source = SourceGrid.of(Geometry(shape_zyx=shape, spacing_zyx_mm=spacing))
    for number in (1, 2):
        write_label_map(folder / "imagesTr" / f"c{number}_0000.nii.gz", image + np.int16(number), source)
        write_label_map(folder / "labelsTr" / f"c{number}.nii.gz", label, source)
    running.link_or_copy(folder / "imagesTr" / "c1_0000.nii.gz", folder / "imagesTs" / "c3_0000.nii.gz")
    running.link_or_copy(folder / "labelsTr" / "c1.nii.gz", folder / "labelsTs" / "c3.nii.gz")
    organs = {f"organ {index}": index for index in range(1, classes + 1)}
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **organs}}
    write_text(folder / "dataset.json", json.dumps(content) + "\n")


def body(shape: tuple[int, int, int]) -> np.ndarray:
    """An elliptic cylinder through all slices, bool."""
    _, y, x = (np.linspace(-1.15, 1.15, size) for size in shape)
    inside = y[:, None] ** 2 / 0.6 + x[None, :] ** 2 < 1
    return np.broadcast_to(inside, shape)


def lattice(shape: tuple[int, int, int], classes: int) -> np.ndarray:
    """Boxes of one organ each in the middle of the body, in the smallest type."""
    label = np.zeros(shape, np.uint8 if classes < 256 else np.uint16)
    rows = math.ceil(classes ** (1 / 3))
    layers = math.ceil(classes / rows**2)
    spans = [np.linspace(low * size, high * size, count + 1) for size, count, low, high in (
        (shape[0], layers, 0.05, 0.95), (shape[1], rows, 0.28, 0.72), (shape[2], rows, 0.22, 0.78),
    )]  # fmt: skip
    for index in range(1, classes + 1):
        place = ((index - 1) // rows**2, (index - 1) // rows % rows, (index - 1) % rows)
        sides = []
        for edges, at in zip(spans, place, strict=True):
            low, high = edges[at], edges[at + 1]
            sides.append(slice(round(low + 0.12 * (high - low)), round(high - 0.12 * (high - low)) + 1))
        label[tuple(sides)] = index
    return label


def report(bench: running.Bench, options: argparse.Namespace) -> None:
    names = [step.partition(" ")[2] for step in bench.steps if step.startswith(f"{options.classes[0]} ")]
    lines = [
        f"# Many classes: scans of {'×'.join(map(str, options.shape))} voxels (z, y, x), one thread",
        "",
        "Seconds of processor time and peak memory (GiB) of each command, start of Python included.",
        "",
        f"| classes | patch | {' | '.join(names)} |",
        f"|---:|---|{'---:|' * len(names)}",
    ]
    for classes in options.classes:
        cells = []
        for name in names:
            found = bench.steps.get(f"{classes} {name}")
            cells.append(f"{found['processor']:.0f} s, {found['gib']:.1f}" if found else "–")
        plans = bench.work / str(classes) / "flaresemi" / "plans.json"
        patch = "×".join(map(str, load_plans(plans).fine.patch_zyx)) if plans.exists() else "–"
        lines.append(f"| {classes} | {patch} | {' | '.join(cells)} |")
    dates = sorted({found["made"] for found in bench.steps.values()})
    bench.publish([*lines, "", f"Run by `OMP_NUM_THREADS=1 python benchmarks/many_classes.py`, {'; '.join(dates)}."])


if __name__ == "__main__":
    main()
