"""Fifty CTs of FLARE's size in one command: does it stay as fast, and as small, from the first to the last?

Ten phantoms of 512×512 by 60 to 140 slices, each under five names; models: of benchmarks/coarse_to_fine.py or of
-m. Memory is sampled by --measure while each case is worked on; since one process is asked about, a stopped run
begins anew. Result: results/many_cases.md.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import running

PHANTOMS, CASES = 10, 50
SLICES = (60, 140)


def main() -> None:
    bench, model = running.phantom_bench("many_cases", __doc__)
    images, output = bench.work / "images", bench.work / "output"
    for number in range(PHANTOMS):
        file = bench.work / f"phantom_{number}.nii.gz"
        running.phantom_scan(file, number, int(np.linspace(*SLICES, PHANTOMS)[number]), vary=True)
        for case in range(number, CASES, PHANTOMS):
            running.link_or_copy(file, images / f"case_{case:02d}_0000.nii.gz")
    if "predict" not in bench.steps:
        shutil.rmtree(output, ignore_errors=True)
    bench.command("predict", "flaresemi_predict", "-i", images, "-o", output, "-m", model, "--measure")
    bench.report(text(output / "efficiency", bench.steps["predict"]["seconds"]))


def text(folder: Path, seconds: float) -> str:
    costs = [json.loads(file.read_text(encoding="utf-8"))["cost"] for file in sorted(folder.glob("case_*.json"))]
    lines = [
        f"# {len(costs)} CTs of 512×512×{SLICES[0]} to {SLICES[1]} in one command",
        "",
        f"{seconds:.0f} s in all, {seconds / len(costs):.1f} s a case.",
        "",
        "| cases | seconds of a case, mean | largest memory, MiB |",
        "|---|---:|---:|",
    ]
    for start in range(0, len(costs), PHANTOMS):  # each row: the same ten phantoms
        part = costs[start : start + PHANTOMS]
        mean = sum(cost["seconds"] for cost in part) / len(part)
        peak = max(sample["rss_mib"] for cost in part for sample in cost["samples"])
        lines.append(f"| {start} to {start + len(part) - 1} | {mean:.1f} | {peak:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
