"""What the rules that are learned from labeled cases are worth: the region that COARSE finds, and pieces that are kept.

Trained models segment labeled images in two ways (behind COARSE, and FINE on the whole body), and every label map is
cleaned in every way. Development cases choose; test cases do not belong here. After `few.py acdc-3 --arms a`:

    W=benchmarks/work/acdc_3/draw_0
    OMP_NUM_THREADS=1 python benchmarks/anatomy.py $W/few/models/fold_all $W/development [--output FILE]
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import running
from tqdm import tqdm

from flaresemi.dataset import load_dataset
from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.geometry import BoundingBox
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.models import load_models
from flaresemi.inference.postprocessing import Cleaning
from flaresemi.io.images import Image
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import read_case

Segment = Callable[[Image, np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder of trained models, fold 'all'")
    parser.add_argument("dataset", type=Path, help="dataset folder whose labeled cases are segmented")
    parser.add_argument("--output", type=Path, help="write the tables there, too")
    options = parser.parse_args()
    models = load_models(options.models)
    labels = models.fine[0].labels
    raw = [dataclasses.replace(each, keep_largest=(), touching=()) for each in models.fine]
    two_stage = Segmenter(raw, models.coarse, engine="torch")
    ways: dict[str, Segment] = {"behind COARSE": lambda image, _: two_stage.segment(image).indices_zyx}
    if two_stage.two_stage:
        whole = [dataclasses.replace(each, plan=dataclasses.replace(each.plan, region="body")) for each in raw]
        one_stage = Segmenter(whole, engine="torch")
        ways["in the reference's box"] = lambda image, reference: (
            two_stage.segment(image, organs=BoundingBox.of_mask(reference > 0)).indices_zyx
        )
        ways["on the whole body"] = lambda image, _: one_stage.segment(image).indices_zyx
    scores: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    found: list[tuple[float, float]] = []
    for case in tqdm(load_dataset(options.dataset).labeled):
        image, reference = read_case(case, labels)
        if reference is None:
            continue
        for way, segment in ways.items():
            segmented = segment(image, reference)
            for name, clean in _cleanings(models.fine[0].touching, labels).items():
                cleaned = segmented.copy()
                clean(cleaned, labels)
                scores.setdefault((way, name), []).append(dice_per_organ(cleaned, reference, labels.count))
        if models.coarse:
            found.append(_recall(two_stage, image, reference, models.fine[0].plan.margin_mm))
    lines = [f"# {options.models}, {running.when_and_what()}; {running.machine()}", ""]
    lines += [f"| FINE | kept | mean Dice | {' | '.join(labels.names)} |", f"|---|---|{'---:|' * (labels.count + 1)}"]
    for (way, name), values in scores.items():
        means = np.nanmean(np.array(values, float), axis=0)
        lines.append(f"| {way} | {name} | {np.mean(means):.4f} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    if found:
        recalls, sizes = zip(*sorted(found), strict=True)
        told = ", ".join(f"{recall:.2f}" for recall in recalls[:4])
        lines += ["", f"Recall of the region: mean {np.mean(recalls):.3f}, worst {told}; size {np.mean(sizes):.2f}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)


def _cleanings(touching: tuple[tuple[str, ...], ...], labels: LabelSet) -> dict[str, Cleaning]:
    groups = tuple(tuple(sorted(labels.index(name) for name in group)) for group in touching)
    every = tuple(range(1, labels.count + 1))
    return {
        "everything": Cleaning(),
        "largest": Cleaning(largest=every),
        "attached": Cleaning(touching=groups),
        "attached, then largest": Cleaning(touching=groups, largest=every),
    }


def _recall(segmenter: Segmenter, image: Image, reference_zyx: np.ndarray, margin_mm: float) -> tuple[float, float]:
    """Share of the organs' voxels in the region that COARSE finds, and the region's share of the image."""
    box = segmenter.find_organs(image) if segmenter.two_stage else None
    if box is None:
        return 1.0, 1.0
    region = box.grown(margin_mm, image.geometry.spacing_zyx_mm, image.geometry.shape_zyx)
    inside = np.count_nonzero(reference_zyx[region.slices]) / max(np.count_nonzero(reference_zyx), 1)
    return float(inside), float(np.prod(region.shape_zyx) / reference_zyx.size)


if __name__ == "__main__":
    main()
