"""One small image from the prompt to its label map: where do the seconds go, before and after a change?

    .venv/bin/python benchmarks/cold_start.py -m MODELS -i IMAGE --before OTHER_CHECKOUT

Two checkouts take turns with the same models and image, each in processes of its own and on a copy of the models.
Processor seconds hardly depend on what else the machine does, seconds do. Result: results/cold_start.md.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import running

HERE = Path(__file__).resolve().parents[1]
NOTHING, TORCH = "python alone", "import torch"


def timed(words: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds, processor seconds, and what was logged."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd="/")
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-i", "--image", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True, help="a checkout to compare with")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--label", default="", help="of the machine, for the result")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    steps: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sides = {"before": options.before.resolve(), "after": HERE}
        for side in sides:
            shutil.copytree(options.model, Path(scratch, side), ignore=shutil.ignore_patterns(".compiled"))
        for turn in range(options.turns + 1):
            for name, code in ((NOTHING, "pass"), (TORCH, "import torch")):
                found.setdefault(name, []).append(timed([sys.executable, "-c", code], dict(os.environ))[:2])
            for side, checkout in sides.items():
                output = Path(scratch, f"{side}_{turn}.nii.gz")
                words = ["-m", str(Path(scratch, side)), "-i", str(options.image.resolve()), "-o", str(output)]
                environment = os.environ | {"PYTHONPATH": str(checkout)}
                wall, processor, log = timed([sys.executable, "-m", "flaresemi.cli.predict", *words], environment)
                found.setdefault(f"{side}, first start" if turn == 0 else side, []).append((wall, processor))
                steps[side] = next(line for line in log.splitlines() if " s (read" in line)
    lines = ["| what | seconds: least | median | processor seconds: least | median |", "|---|---|---|---|---|"]
    for name, pairs in found.items():
        walls, processors = zip(*pairs, strict=True)
        cells = (min(walls), statistics.median(walls), min(processors), statistics.median(processors))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    lines += ["", *(f"* {side}, the last time: {told}" for side, told in steps.items())]
    text = f"# From the prompt to the label map of one small image\n\n{options.label}\n\n" + "\n".join(lines) + "\n"
    (running.RESULTS / "cold_start.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
