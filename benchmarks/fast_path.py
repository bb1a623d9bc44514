"""Is speed paid for with accuracy? flaresemi_predict as it is, against the slow way, with the same trained models.

The slow way: fp32 in torch, windows of the training patch with half of it as overlap, the logits of all classes on the
image's voxels at once, and then the largest. The fast way: the defaults, larger steps, and shorter and longer windows.
Models and scans: what benchmarks/openkbp.py trained, or with --phantoms benchmarks/coarse_to_fine.py.

    python benchmarks/fast_path.py [--phantoms]          result: results/fast_path_openkbp.md, fast_path_phantoms.md
"""

import json
import time
import unittest.mock
from pathlib import Path

import numpy as np
import running
import torch

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.inference import predictor
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.models import load_models
from flaresemi.preprocessing.resampling import resample_part

STEPS = (0.5, 0.6, 0.75)

#: Longest windows, in patches, besides the default.
LENGTHS = (1.0, 1.5, 2.0)


class SlowSegmenter(Segmenter):
    """Restores all classes at once."""

    @staticmethod
    def _labels(logits: torch.Tensor, region: BoundingBox, grid: StageGrid, out_box: BoundingBox) -> np.ndarray:
        shapes = grid.shape_zyx, grid.body_box.shape_zyx
        return resample_part(logits.numpy(), region, *shapes, "linear", out_box).argmax(axis=0).astype(np.uint8)


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--phantoms", action="store_true", help="the phantoms and models of coarse_to_fine.py")
    parser.add_argument("--arms", nargs="+", choices=("one", "two"), default=["one", "two"], help="stages [one two]")
    options = parser.parse_args()
    if options.phantoms:
        name, trained = "phantoms", running.need(options.work / "coarse_to_fine")
        data = trained / "data"
        images, references = data / "test_image", data / "test_mask"
    else:
        name, trained = "openkbp", running.need(options.work / "openkbp")
        data = running.need(running.SHARED / "openkbp")
        images, references = data / "imagesTs", data / "labelsTs"
    bench = running.Bench(f"fast_path_{name}", options.work)
    parts = [f"# the fast way against the slow one: {name}", ""]
    for arm in options.arms:
        models = trained / arm / "models"
        parts += [
            f"## {'two stages' if arm == 'two' else 'one stage'}",
            "",
            "| | mean Dice | against slow | mean NSD | against slow | worst organ, Dice | seconds, all cases |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        loaded = load_models(models)
        rows = {"slow": f"{arm} slow"}
        slow = SlowSegmenter(loaded.fine, loaded.coarse, engine="torch", precision="fp32", step=0.5, window="patch")
        segment(bench, rows["slow"], slow, images)
        for step in STEPS:
            key = f"{arm} step {step:g}"
            words = ("-i", images, "-o", bench.work / key, "-m", models, "--step", step)
            bench.command(key, "flaresemi_predict", *words)
            rows[f"fast, step {step:g}"] = key
        for length in LENGTHS:
            rows[f"fast, windows up to {length:g} patches"] = key = f"{arm} windows {length:g}"
            with unittest.mock.patch.object(predictor, "LONGEST_WINDOW_PATCHES", length):
                segment(bench, key, Segmenter(loaded.fine, loaded.coarse), images)
        found = {}
        for label, key in rows.items():
            summary = bench.work / f"{key}.json"
            words = ("-p", bench.work / key, "-r", references, "-o", summary, "-d", data)
            bench.command(f"{key} evaluate", "flaresemi_evaluate", *words)
            found[label] = json.loads(summary.read_text(encoding="utf-8"))
            parts.append(line(label, found[label], found["slow"], bench.steps[key]["seconds"]))
        parts.append("")
        bench.report("\n".join(parts))


def segment(bench: running.Bench, key: str, segmenter: Segmenter, images: Path) -> None:
    """Predicts all images in this process, once."""
    if key in bench.steps:
        return
    started = time.monotonic()
    for image in sorted(images.glob("*_0000.*")):
        case = image.name.replace("_0000", "")
        segmenter.predict_file([image], bench.work / key / case)
        print(f"{key}: {case}", flush=True)
    bench.record(key, seconds=time.monotonic() - started)


def line(label: str, summary: dict, reference: dict, seconds: float) -> str:
    def dice(found: dict) -> dict[str, float]:
        return {organ["name"]: organ["dice"]["mean"] for organ in found["organs"] if organ["dice"]}

    worst = min(dice(summary)[organ] - value for organ, value in dice(reference).items())
    by_dice, by_nsd = (summary[key] - reference[key] for key in ("mean_dice", "mean_nsd"))
    return (
        f"| {label} | {summary['mean_dice']:.4f} | {by_dice:+.4f} | {summary['mean_nsd']:.4f} | {by_nsd:+.4f} | "
        f"{worst:+.4f} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
