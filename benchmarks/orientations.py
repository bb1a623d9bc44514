"""One volume stored in all 48 axis orders: one model, 48 predictions, one segmentation in patient space?

The model learns to draw bands of intensity of the volume itself, so that what it draws is anything but empty.
Result: results/orientations.md.
"""

import itertools

import numpy as np
import running

from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.io.images import read_image, read_label_map, write_label_map


def main() -> None:
    options = running.parser(__doc__ or "").parse_args()
    source = running.need(running.SHARED / "robustness" / "niivue_orientations48")
    bench = running.Bench("orientations", options.work)
    data, workspace, predictions = bench.work / "data", bench.work / "workspace", bench.work / "predictions"
    files = sorted(source.glob("*.nii.gz"))
    if "data" not in bench.steps:
        original = source / "LPS.nii.gz"
        running.link_or_copy(original, data / "labeled_image" / "volume_0000.nii.gz")
        image = read_image([original])
        bands = np.quantile(image.array_czyx[0], [0.6, 0.75, 0.9])
        write_label_map(
            data / "labeled_mask" / "volume.nii.gz",
            np.digitize(image.array_czyx[0], bands).astype(np.uint8),
            image.source,
        )
        (data / "dataset.json").write_text(
            '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "dim": 1, "middle": 2, "bright": 3}}\n'
        )
        bench.record("data")
    place = ("-d", data, "-w", workspace)
    bench.command("plan", "flaresemi_plan_and_preprocess", *place, "--preset", "small")
    bench.command("FINE", "flaresemi_train", "FINE", "all", *place, "--time-budget", "2m", "--continue")
    bench.command("predict", "flaresemi_predict", "-i", source, "-o", predictions, *place, "--continue")
    label_maps = [read_label_map(predictions / file.name).array_zyx for file in files]
    worst = min(
        min(dice_per_organ(one, other, 3)) for one, other in itertools.combinations(label_maps, 2)
    )  # read_label_map brings each to patient space by its own header
    drawn = np.bincount(label_maps[0].ravel(), minlength=4)
    bench.report(
        f"# {len(files)} orientations of one volume\n\nLowest Dice between any two predictions, any label: "
        f"**{worst:.6f}** (voxels per label: {', '.join(map(str, drawn))})"
    )


if __name__ == "__main__":
    main()
