"""Does prediction stay linear in time and bounded in memory? One phantom CT of 512×512 by 100, 300 and 600 slices.

The whole command is measured from outside: wall time and peak memory of the process, and the labels that it wrote. Two
stages and 13 organs, from the models of benchmarks/coarse_to_fine.py or those that -m names; every scan of the same
patient, with thinner slices the more there are. Result: results/scan_size.md.
"""

import json
import sys
from pathlib import Path

import numpy as np
import running

from flaresemi.io.images import read_image

SLICES = (100, 300, 600)
EDGE = 512
SEED = 3


def main() -> None:
    bench, model = running.phantom_bench("scan_size", __doc__)
    for slices in SLICES:
        image = bench.work / f"phantom_{slices}_0000.nii.gz"
        running.phantom_scan(image, SEED, slices, vary=False)
        if f"{slices} slices" not in bench.steps:
            facts = predict(image, model, bench.work / "predictions")
            bench.record(f"{slices} slices", **facts, made=running.when_and_what())
        bench.report(text({slices: bench.steps.get(f"{slices} slices") for slices in SLICES}))


def predict(image: Path, model: Path, output: Path) -> dict:
    """Runs the command; seconds, peak memory and the seconds of its steps."""
    command = [
        str(Path(sys.executable).parent / "flaresemi_predict"),
        "-i",
        str(image),
        "-o",
        str(output),
        "-m",
        str(model),
        "--measure",
    ]
    spent = running.spent(command)
    case = image.name.removesuffix("_0000.nii.gz")
    efficiency = json.loads((output / "efficiency" / f"{case}.json").read_text(encoding="utf-8"))
    organs = np.unique(read_image([output / f"{case}.nii.gz"]).array_czyx).size - 1
    return {
        "seconds": spent.seconds,
        "peak_mib": spent.peak_mib,
        "steps": efficiency["steps"],
        "organs": organs,
    }


def text(found: dict[int, dict | None]) -> str:
    steps = list(next(facts for facts in found.values() if facts)["steps"])
    lines = [
        f"# One CT of {EDGE}×{EDGE}, two stages, 14 classes: time and memory by its slices",
        "",
        "Input: the image as float32, which is what a scan with a rescale slope needs; output: labels of one byte a "
        "voxel. The rest of the peak is what the program, its libraries, the networks and FINE's region take.",
        "",
        "Measured " + "; ".join(sorted({facts["made"] for facts in found.values() if facts})) + ".",
        "",
        "| slices | whole command, s | peak memory, MiB | input + output, MiB | the rest, MiB | organs found | "
        + " | ".join(f"{step}, s" for step in steps)
        + " |",
        "|---:|---:|---:|---:|---:|---:|" + "---:|" * len(steps),
    ]
    for slices, facts in found.items():
        if facts:
            needed = slices * EDGE * EDGE * 5 / 2**20
            taken = " | ".join(f"{facts['steps'].get(step, 0.0):.1f}" for step in steps)
            lines.append(
                f"| {slices} | {facts['seconds']:.1f} | {facts['peak_mib']:.0f} | {needed:.0f} | "
                f"{facts['peak_mib'] - needed:.0f} | {facts['organs']} | {taken} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
