"""How often few labeled cases show an organ always to one side of another, or of the middle of a pair.

The rule of flaresemi.training.anatomy.one_sided, on label maps as they are, in voxels of a given width; cases are
chosen by chance, 1000 times. Pairs are those of the organs' names.

    python benchmarks/sides.py acdc 1.5 6
    python benchmarks/sides.py btcv 2 4
    python benchmarks/sides.py openkbp 3 4
"""

import argparse
import collections
import itertools

import numpy as np
import running

from flaresemi.io.images import read_label_map
from flaresemi.sides import find_sides
from flaresemi.training.anatomy import LEAST_CASES, ONE_SIDED_MM, ONE_SIDED_SDS, ONE_SIDED_VOXELS

CHOICES = 1000
MOST_CASES = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder of ../shared/data")
    parser.add_argument("voxel_mm", type=float, help="width of a voxel")
    parser.add_argument("labeled", type=int, help="cases in a choice")
    options = parser.parse_args()
    folder = running.need(running.SHARED / options.dataset)
    values = {name: v for name, v in running.load_json(folder / "dataset.json")["labels"].items() if v}
    pairs = find_sides(list(values)).pairs
    rows = []
    for path in sorted((folder / "labelsTr").glob("*.nii.gz"))[:MOST_CASES]:
        label = read_label_map(path)
        scale = label.geometry.spacing_zyx_mm[2] / options.voxel_mm
        found = {name: np.nonzero(label.array_zyx == value)[2] for name, value in values.items()}
        rows.append({name: x.mean() * scale if len(x) else np.nan for name, x in found.items()})
    alone = [name for name in values if name not in {each for pair in pairs for each in pair}]
    places = {name: np.array([row[name] for row in rows]) for name in alone}
    places |= {f"{a} and {b}": np.array([(row[a] + row[b]) / 2 for row in rows]) for a, b in pairs}
    apart = min(ONE_SIDED_VOXELS, ONE_SIDED_MM / options.voxel_mm)
    generator, seen = np.random.default_rng(0), collections.Counter[tuple[str, str]]()
    for _ in range(CHOICES):
        chosen = generator.choice(len(rows), options.labeled, replace=False)
        for one, other in itertools.combinations(places, 2):
            offsets = places[one][chosen] - places[other][chosen]
            offsets = offsets[np.isfinite(offsets)]
            least = max(ONE_SIDED_SDS * offsets.std(ddof=1), apart) if len(offsets) >= LEAST_CASES else np.inf
            seen[one, other] += bool(len(offsets) and abs(offsets.mean()) > least)
    for (one, other), count in seen.most_common():
        print(f"{one} beside {other}: {count} of {CHOICES}")


if __name__ == "__main__":
    main()
