"""Of the windows of a region that was extended, how many had FINE computed before? Nothing but places is compared.

A region is segmented again from the start when an organ reaches one of its faces. Its windows are spread evenly, so
their places change with its length. Labels that are equal to the last voxel need equal windows: this counts those that
the region had before it was extended, at the same place and of the same size. Result: results/extended_regions.md.
"""

import itertools
import random
import statistics

import running

from flaresemi.geometry import IntTriple
from flaresemi.inference.predictor import larger_window
from flaresemi.inference.sliding_window import window_starts

#: Patch, divisor, margin (voxels) of plans: FLARE22's `base` and `small`, and openkbp's `small`.
PLANS: dict[str, tuple[IntTriple, IntTriple, IntTriple]] = {
    "patch 96x160x160": ((96, 160, 160), (16, 32, 32), (8, 15, 15)),
    "patch 80x96x96": ((80, 96, 96), (16, 16, 16), (8, 10, 10)),
    "patch 48x80x96": ((48, 80, 96), (8, 16, 16), (4, 8, 8)),
}
REGIONS, SEED = 2000, 0

WHAT_IT_SAYS = """
Where one face moves, a fifth of the second pass could be spared: a tenth of FINE's time in that case. For it the logits
of all windows at the other end would have to be kept, for FLARE22's `base` plan 137 MiB each, about as much as all else
that a prediction holds. Where two faces move it is next to nothing. So an extended region is computed anew. Placing
windows otherwise in extended regions would spare more, and give other labels than a region that was as large from the
start.

It cannot be known before the first pass is complete that a region will be extended, either: what reaches a face counts
unless it is a speck beside the largest component of its organ, and that may lie in the last window. COARSE has no say
in it: its organs, with the margin, are what the region was made from.
"""


def windows(start: list[int], size: list[int], patch: IntTriple, divisor: IntTriple) -> set[tuple]:
    """Places and sizes of the windows of a region, in voxels of the stage."""
    window = larger_window((size[0], size[1], size[2]), patch, divisor, 0.5)
    places = [
        [begin + offset for offset in window_starts(max(length, side), side, 0.5)]
        for begin, length, side in zip(start, size, window, strict=True)
    ]
    return {(corner, window) for corner in itertools.product(*places)}


def main() -> None:
    rng = random.Random(SEED)
    lines = ["| plan | faces that move | windows | computed before | share |", "|---|---|---:|---:|---:|"]
    kinds = ("one", "two on one axis", "two axes")
    for (name, (patch, divisor, margin)), kind in itertools.product(PLANS.items(), kinds):
        counts, shared = [], []
        for _ in range(REGIONS):
            start = [100, 100, 100]
            size = [rng.randrange(side, 3 * side) for side in patch]
            axis = rng.randrange(3)
            faces = {
                "one": [(axis, rng.random() < 0.5)],
                "two on one axis": [(axis, False), (axis, True)],
                "two axes": [(axis, rng.random() < 0.5), ((axis + 1) % 3, rng.random() < 0.5)],
            }[kind]
            before = windows(start, size, patch, divisor)
            for moved, high in faces:
                size[moved] += margin[moved]
                start[moved] -= 0 if high else margin[moved]
            after = windows(start, size, patch, divisor)
            counts.append(len(after))
            shared.append(len(after & before))
        mean, same = statistics.fmean(counts), statistics.fmean(shared)
        lines.append(f"| {name} | {kind} | {mean:.1f} | {same:.1f} | {same / mean:.1%} |")
    text = "\n".join(lines)
    print(text)
    title = f"# Windows of an extended region that it had before\n\n{REGIONS} regions of one to three patches an axis."
    (running.RESULTS / "extended_regions.md").write_text(f"{title}\n\n{text}\n{WHAT_IT_SAYS}", encoding="utf-8")


if __name__ == "__main__":
    main()
