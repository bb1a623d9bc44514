"""2000 small unlabeled phantoms through prepare, label, score and select: does a case cost the same at the end?

A hundred phantoms of 48³ voxels, each twenty times with its own noise: 2000 different files. A tiny network labels
them, once in one go and once in two shards. Times are read off the files that were written, memory off the process.
Result: results/pool_scale.md.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import running

from flaresemi.io.images import read_image, write_label_map

os.environ["OMP_NUM_THREADS"] = "1"

DISTINCT = 100
TRAINING = ("--iterations", 150, "--learning-rate", 0.01, "--ema-decay", 0, "--validations", 0, "--device", "cpu",
            "--precision", "fp32")  # fmt: skip
ROUND = ("--fold", 0, "--select", "case", "--device", "cpu", "--precision", "fp32")


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--cases", type=int, default=2000)
    options = parser.parse_args()
    bench = running.Bench("pool_scale", options.work)
    start = bench.work / "one_go"
    data = prepare(bench, start, options.cases, DISTINCT)
    place = ("-d", data, "-w", start)
    bench.command("FINE", "flaresemi_train", "FINE", 0, *place, *TRAINING, "--continue")
    shards = bench.work / "two_shards"
    if "copy" not in bench.steps:
        shutil.rmtree(shards, ignore_errors=True)
        shutil.copytree(start, shards, ignore=shutil.ignore_patterns("preprocessed", "rounds"))
        (shards / "preprocessed").symlink_to(start / "preprocessed")
        bench.record("copy")
    watched(bench, "label", options.cases, *place, *ROUND, "--step", "label")
    again = bench.command("label again", "flaresemi_semi_round", *place, *ROUND, "--step", "label")
    bench.command("select", "flaresemi_semi_round", *place, *ROUND, "--step", "select")
    for number in (0, 1):
        bench.command(
            f"shard {number}", "flaresemi_semi_round", "-d", data, "-w", shards, *ROUND, "--shard", f"{number}/2"
        )
    bench.command("merge", "flaresemi_semi_round", "-d", data, "-w", shards, *ROUND, "--step", "select")
    same, different = compare(start / "rounds", shards / "rounds")
    prepared = by_hundreds(start / "preprocessed" / "sources")
    labeled = by_hundreds(round_folder(start) / "case_scores")
    bench.report(text(options.cases, bench.steps, prepared, labeled, again, same, different))
    if different:
        raise SystemExit("two shards differ from one")


def prepare(bench: running.Bench, workspace: Path, cases: int, distinct: int) -> Path:
    """Makes four labeled phantoms and the pool, plans a tiny network and prepares the cases.

    Args:
        workspace: To prepare them in.
        cases: Unlabeled ones.
        distinct: How many of these are phantoms of their own.

    Returns:
        The dataset folder.
    """
    data = bench.work / "demo" / "data"
    bench.command(
        "data",
        "flaresemi_demo",
        "-o",
        bench.work / "demo",
        "--only-data",
        "--size",
        "tiny",
        "--labeled",
        4,
        "--unlabeled",
        distinct,
        "--test",
        0,
        "--seed",
        9,
        "--workers",
        1,
    )
    if "noise" not in bench.steps:
        add_noise(data / "unlabeled_image", cases)
        bench.record("noise")
    bench.command(
        "prepare",
        "flaresemi_plan_and_preprocess",
        "-d",
        data,
        "-w",
        workspace,
        "--preset",
        "small",
        "--stages",
        "one",
        "--workers",
        1,
    )
    if "shrink" not in bench.steps:
        running.shrink(workspace / "plans.json", edge=48)  # a case is a single window
        bench.record("shrink")
    return data


def add_noise(folder: Path, cases: int) -> None:
    """Makes the phantoms that are there into so many files: number n of a phantom has noise of seed n."""
    originals = sorted(folder.glob("phantom_*_0000.nii.gz"))
    for number in range(cases - len(originals)):
        path = folder / f"noisy_{number:04d}_0000.nii.gz"
        if path.exists():
            continue
        image = read_image([originals[number % len(originals)]])
        noise = np.random.default_rng(number).normal(0.0, 5.0, image.array_czyx.shape[1:])
        write_label_map(path, np.round(image.array_czyx[0] + noise).astype(np.int16), image.source)


def round_folder(workspace: Path) -> Path:
    return workspace / "rounds" / "fold_0" / "round_1"


def watched(bench: running.Bench, step: str, cases: int, *words: object) -> None:
    """Runs the labeling in one go and notes its memory as the score files grow in number."""
    if step in bench.steps:
        return
    scores = round_folder(bench.work / "one_go") / "case_scores"
    shutil.rmtree(scores.parent, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "flaresemi_semi_round"), *map(str, words)]
    print(f"[{bench.name}] {' '.join(command)}", flush=True)
    memory: dict[str, float] = {}
    marks = sorted({min(mark, cases) for mark in (100, 200, 500, 1000, 1500, 2000)})
    started = time.monotonic()
    with open(bench.work / f"{step}.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.5)
            done = len(os.listdir(scores)) if scores.is_dir() else 0
            peak = peak_mib(process.pid)
            while marks and done >= marks[0] and peak is not None:
                memory[str(marks.pop(0))] = peak
    if process.returncode:
        raise SystemExit(f"{step} ended with code {process.returncode}; see {bench.work / f'{step}.log'}")
    bench.record(step, seconds=time.monotonic() - started, memory_mib=memory)


def peak_mib(pid: int) -> float | None:
    """The most memory that a process has had so far; None when it is over."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else None


def by_hundreds(folder: Path) -> list[float]:
    """Seconds per case for each hundred, from the times at which their files were written."""
    times = sorted(path.stat().st_mtime for path in folder.glob("*.json"))
    return [(times[min(n + 100, len(times) - 1)] - times[n]) / 100 for n in range(0, len(times) - 100, 100)]


def compare(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many files of labels, scores and selection are equal byte for byte, and which are not."""
    names = [
        {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != "round.json"}
        for root in (one, other)
    ]
    different = [name for name in names[0] & names[1] if (one / name).read_bytes() != (other / name).read_bytes()]
    return len(names[0] & names[1]) - len(different), sorted(different) + sorted(names[0] ^ names[1])


def text(
    cases: int, steps: dict, prepared: list[float], labeled: list[float], again: float, same: int, different: list[str]
) -> str:
    def row(what: str, values: list[float]) -> str:
        first, last = np.mean(values[: len(values) // 2]), np.mean(values[len(values) // 2 :])
        return f"| {what} | {min(values):.3f} | {np.median(values):.3f} | {max(values):.3f} | {last / first:.2f} |"

    lines = [
        f"# {cases} unlabeled cases",
        "",
        "Seconds per case, hundred by hundred (the machine was busy with other work: upper bounds):",
        "",
        "| step | least | median | most | second half / first half |",
        "|---|---:|---:|---:|---:|",
        row("prepare", prepared),
        row("label and score", labeled),
        "",
        f"* Label and score, all {cases}: {steps['label']['seconds']:.0f} s.",
        f"* The same command again, when all is done: **{again:.1f} s**.",
        f"* Select (scores read, held-out cases looked up, 50 % taken): {steps['select']['seconds']:.1f} s.",
        f"* Two shards against one go: {same} files equal byte for byte, **{len(different)} different**.",
        "",
        "| cases labeled | peak memory, MiB |",
        "|---:|---:|",
        *(f"| {mark} | {peak:.0f} |" for mark, peak in steps["label"]["memory_mib"].items()),
        "",
        "Seconds per case of each hundred:",
        "",
        f"* prepare: {', '.join(f'{value:.2f}' for value in prepared)}",
        f"* label and score: {', '.join(f'{value:.2f}' for value in labeled)}",
    ]
    return "\n".join(lines + ["", *(f"* different: {name}" for name in different[:20])])


if __name__ == "__main__":
    main()
