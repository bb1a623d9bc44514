"""What saving probabilities costs: time, memory and disk for a CT of 512×512×300 whose whole body was segmented.

The scores are made up: organs are balls whose logits fall off from their middles, on a stage of 75×128×128 voxels, with
14 and 117 classes. Each case runs in a process of its own. Result: results/probabilities.md.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import running
import torch

from flaresemi.geometry import BoundingBox, Geometry, StageGrid
from flaresemi.inference.probabilities import ProbabilityOutput
from flaresemi.io.grids import SourceGrid
from flaresemi.labels import Label, LabelSet
from flaresemi.preprocessing.averaging import KnownLogits
from flaresemi.preprocessing.winners import GrowingLabels

SHAPE, SPACING = (300, 512, 512), (1.5, 0.8, 0.8)
STAGE = (75, 128, 128)
CASES = ((14, 8, True), (14, 16, True), (117, 8, True), (117, 8, False))
RESULT = Path(__file__).parent / "results" / "probabilities.md"


def made_up(classes: int) -> torch.Tensor:
    """Logits of background, 0, and of balls that lie anywhere."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros((classes, *STAGE))
    axes = [torch.arange(size, dtype=torch.float32) for size in STAGE]
    for organ in range(1, classes):
        center = torch.rand(3, generator=generator) * torch.tensor(STAGE)
        radius = 4.0 + 8.0 * float(torch.rand(1, generator=generator))
        z, y, x = (axis - at for axis, at in zip(axes, center, strict=True))
        distance = (z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2).sqrt_()
        logits[organ] = (2.0 * (radius - distance)).clamp_(-12, 12)
    return logits


def one(classes: int, bits: int, organs: bool) -> None:
    """Saves one case and prints what it cost."""
    torch.set_num_threads(1)
    labels = LabelSet(labels=tuple(Label(name=f"organ {i}", value=i) for i in range(1, classes)))
    whole = BoundingBox.whole(SHAPE)
    spacing = tuple(size * mm / stage for size, mm, stage in zip(SHAPE, SPACING, STAGE, strict=True))
    grid = StageGrid.at_spacing(SHAPE, SPACING, whole, spacing)
    source = SourceGrid.of(Geometry(shape_zyx=SHAPE, spacing_zyx_mm=SPACING))
    logits = made_up(classes)
    part = BoundingBox.whole(STAGE)
    before, began = peak_mib(), time.monotonic()
    found = GrowingLabels(part, STAGE, SHAPE, whole)
    found.add(logits)
    restored, restoring = peak_mib(), time.monotonic() - began
    del found
    output = ProbabilityOutput(organs=organs, uncertainty=True, bits=bits, extent="image", labels=labels)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        saved = output.save(Path(folder), "a", [KnownLogits(logits_czyx=logits, region=part, grid=grid)], source)
        seconds = time.monotonic() - began
        megabytes = sum((Path(folder) / name).stat().st_size for name in saved.files) / 2**20
    gib = 4 * classes * math.prod(SHAPE) / 2**30
    what = f"{'probabilities and ' if organs else ''}uncertainty"
    print(
        f"| {classes} | {what} | {bits} | {restoring:.1f} | {seconds:.1f} | {before:.0f} | {restored:.0f} | "
        f"{peak_mib():.0f} | {gib:.0f} | {len(saved.files)} | {megabytes:.1f} |",
        flush=True,
    )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("CLASSES", "BITS", "ORGANS"))
    options = parser.parse_args()
    if options.one:
        one(int(options.one[0]), int(options.one[1]), options.one[2] == "1")
        return
    rows = []
    for case in CASES:
        words = [sys.executable, __file__, "--one", *(str(int(word)) for word in case)]
        rows.append(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
        RESULT.write_text(text(rows), encoding="utf-8")


def text(rows: list[str]) -> str:
    head = (
        "| classes | saved | bits | label map, s | saving, s | peak before, MiB | with the label map, MiB | "
        "with saving, MiB | all probabilities as float32, GiB | files | on disk, MiB |"
    )
    return "\n".join(
        [
            f"# {' '.join((__doc__ or '').split(':')[0].split())}",
            "",
            *(__doc__ or "").split("\n\n", 1)[1].rsplit(" Result", 1)[0].splitlines(),
            "",
            head,
            "|" + "---|" * (head.count("|") - 1),
            *rows,
            "",
            f"`python benchmarks/probabilities.py`, {running.when_and_what()}, one thread on one of two shared cores "
            "(AMD EPYC), no GPU.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
