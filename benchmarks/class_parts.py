"""What grows with the number of classes, part by part: processor time and additional memory at 2, 14, 117 and 300.

Every part runs in a process of its own on arrays of the sizes that a CT of 450×410×410 mm (300 slices of 512×512) has
with preset `small` on one stage: a patch of 48×64×80, two of them a step; a body of 100×122×158 voxels on the stage's
grid; an image of 100×320×320. Organs are boxes on a lattice, as in many_classes.py. Result: results/class_parts.md.

    OMP_NUM_THREADS=1 python benchmarks/class_parts.py
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import running
import torch
from many_classes import lattice

from flaresemi.evaluation.flare import evaluate_case
from flaresemi.evaluation.overlap import dice_where_present
from flaresemi.geometry import BoundingBox, IntTriple, StageGrid
from flaresemi.inference.sliding_window import most_likely, slide_in_slabs
from flaresemi.io.case_store import _sample_voxels
from flaresemi.io.stored_case import CaseRecord
from flaresemi.labels import Label, LabelSet
from flaresemi.preprocessing.resampling import resample_labels
from flaresemi.preprocessing.winners import GrowingLabels
from flaresemi.reporting.overlay import busiest_slices
from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss

PATCH, STAGE, IMAGE = (48, 64, 80), (100, 122, 158), (100, 320, 320)


class Parts:
    """The work of each part; making its input is not measured.

    Args:
        classes: Without background.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.labels = LabelSet(labels=tuple(Label(name=f"organ {n}", value=n) for n in range(1, classes + 1)))

    def training_loss(self) -> Callable[[], object]:
        sizes = [tuple(size // step for size in PATCH) for step in (1, 2, 4, 8)]
        logits = [torch.randn(2, self.classes + 1, *size, requires_grad=True) for size in sizes]
        target = torch.randint(0, self.classes + 1, (2, *PATCH))
        supervised = torch.ones(2, self.classes + 1, dtype=torch.bool)
        loss = DeepSupervisionLoss(SegmentationLoss())
        return lambda: loss(logits, target, supervised).sum().backward()

    def logits_of_a_body(self) -> Callable[[], object]:
        image, output = torch.zeros(1, *STAGE), torch.zeros(1, self.classes + 1, *PATCH)
        return lambda: next(slide_in_slabs(image, lambda windows: output, PATCH, whole=True))

    def restoring(self) -> Callable[[], object]:
        logits = self._logits()
        labels = GrowingLabels(BoundingBox.whole(STAGE), STAGE, IMAGE, BoundingBox.whole(IMAGE))
        return lambda: labels.add(logits)

    def windows_to_labels_at_once(self) -> Callable[[], object]:
        return self._in_slabs(STAGE, IMAGE, whole=True)

    def windows_to_labels_in_slabs(self) -> Callable[[], object]:
        return self._in_slabs(STAGE, IMAGE)

    def the_same_of_a_scan_three_times_as_long(self) -> Callable[[], object]:
        return self._in_slabs((3 * STAGE[0], *STAGE[1:]), (3 * IMAGE[0], *IMAGE[1:]))

    def _in_slabs(self, stage: IntTriple, shape: IntTriple, *, whole: bool = False) -> Callable[[], object]:
        image, forward = self._windows(stage)
        labels = GrowingLabels(BoundingBox.whole(stage), stage, shape, BoundingBox.whole(shape))

        def work() -> None:
            for slab in slide_in_slabs(image, forward, PATCH, whole=whole):
                labels.add(slab)

        return work

    def _windows(self, stage: IntTriple) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """An image, and a network that sees the same organs in every window."""
        found = torch.from_numpy(lattice(PATCH, self.classes).astype(np.int64))
        output = torch.zeros(1, self.classes + 1, *PATCH).scatter_(1, found[None, None], 5.0)
        return torch.zeros(1, *stage), lambda windows: output

    def labels_of_a_stage(self) -> Callable[[], object]:
        label = lattice(IMAGE, self.classes)
        return lambda: resample_labels(label, STAGE)

    def voxels_to_draw(self) -> Callable[[], object]:
        label = lattice(IMAGE, self.classes)
        grid = StageGrid(
            canonical_shape_zyx=IMAGE,
            canonical_spacing_zyx_mm=(1.0, 1.0, 1.0),
            body_box=BoundingBox.whole(IMAGE),
            shape_zyx=IMAGE,
        )
        record = CaseRecord.labeled(
            case_id="c", preprocessing_hash="", grid=grid, label_zyx=label, organs=self.classes, supervised=()
        )
        return lambda: _sample_voxels(record, label)

    def quick_validation(self) -> Callable[[], object]:
        label = lattice(STAGE, self.classes)
        return lambda: dice_where_present(label, np.roll(label, 1, axis=2), self.labels)

    def evaluation(self) -> Callable[[], object]:
        label = lattice(IMAGE, self.classes)
        moved = np.roll(label, 1, axis=2)
        return lambda: evaluate_case(moved, label, (4.5, 1.3, 1.3), self.labels, default_tolerance_mm=2.0)

    def slices_of_a_picture(self) -> Callable[[], object]:
        label = lattice(IMAGE, self.classes)
        return lambda: busiest_slices(label, self.classes)

    def largest_class(self) -> Callable[[], object]:
        logits = self._logits()
        return lambda: most_likely(logits)

    def _logits(self) -> torch.Tensor:
        label = torch.from_numpy(lattice(STAGE, self.classes).astype(np.int64))
        return torch.zeros(self.classes + 1, *STAGE).scatter_(0, label[None], 5.0)


NAMES = [name for name in vars(Parts) if not name.startswith("_")]


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 14, 117, 300])
    parser.add_argument("--parts", nargs="+", default=NAMES, choices=NAMES)
    options = parser.parse_args()
    bench = running.Bench("class_parts", options.work)
    for classes in options.classes:
        for name in options.parts:
            step = f"{classes} {name}"
            if step not in bench.steps:
                bench.record(step, **alone(classes, name), made=running.when_and_what())
        report(bench, options.classes)


def alone(classes: int, name: str) -> dict[str, float]:
    """Seconds of processor time and additional GiB of a part, in a process of its own."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        work = getattr(Parts(classes), name)()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
        before, started = _kib("VmRSS"), time.process_time()
        work()
        found = {"seconds": time.process_time() - started, "gib": (_kib("VmHWM") - before) / 2**20}
        os.write(sender, json.dumps(found).encode())
        os._exit(0)
    os.close(sender)
    with open(receiver, "rb") as answer:
        text = answer.read()
    _, status, _ = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{name} at {classes} classes ended with status {status}")
    return json.loads(text)


def _kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def report(bench: running.Bench, classes: list[int]) -> None:
    lines = [
        "# What grows with the number of classes: processor seconds and additional GiB of each part, one thread",
        "",
        f"| part | {' | '.join(map(str, classes))} |",
        f"|---|{'---:|' * len(classes)}",
    ]
    for name in NAMES:
        found = [bench.steps.get(f"{count} {name}") for count in classes]
        cells = (f"{each['seconds']:.2f} s, {each['gib']:.2f}" if each else "–" for each in found)
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    dates = sorted({each["made"] for each in bench.steps.values()})
    bench.publish([*lines, "", f"Run by `OMP_NUM_THREADS=1 python benchmarks/class_parts.py`, {'; '.join(dates)}."])


if __name__ == "__main__":
    main()
