"""What scoring costs at 2, 14 and 117 organs on 300×512×512 voxels: compact predictions, and ones with stray voxels.

Every organ is a box on a lattice, predicted one voxel off on every axis. A few voxels anywhere in the scan, as networks
leave them, make the box about an organ as large as the scan. Result: results/stray_voxels.md.

    OMP_NUM_THREADS=1 python benchmarks/stray_voxels.py --classes 117 --stray 5
"""

import argparse
import resource
import time

import numpy as np
from many_classes import EXTENT_MM, lattice

from flaresemi.evaluation.flare import evaluate_case
from flaresemi.labels import Label, LabelSet
from flaresemi.records import record_hash

SHAPE = (300, 512, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=117)
    parser.add_argument("--stray", type=int, default=5, help="voxels of every organ that lie anywhere")
    options = parser.parse_args()
    reference = lattice(SHAPE, options.classes)
    prediction = np.roll(reference, (1, 1, 1), (0, 1, 2))
    rng = np.random.default_rng(0)
    for organ in range(1, options.classes + 1):
        prediction[tuple(rng.integers(20, size - 20, options.stray) for size in SHAPE)] = organ
    labels = LabelSet(labels=tuple(Label(name=f"organ {i}", value=i) for i in range(1, options.classes + 1)))
    spacing = tuple(extent / size for extent, size in zip(EXTENT_MM, SHAPE, strict=True))
    started = time.process_time()
    scores = evaluate_case(prediction, reference, spacing, labels, default_tolerance_mm=2.0)
    seconds, gib = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.classes} organs, {options.stray} stray: {seconds:.1f} s, {gib:.2f} GiB, scores {record_hash(scores)}"
    )


if __name__ == "__main__":
    main()
