"""A pool of small phantoms labeled by 1, 2 and 4 processes, one of them slowed tenfold, one killed: the same result?

Twenty phantoms of 48³ voxels, with noise of their own as often as there are cases; a tiny network labels them. The
slowed process may run for 20 of every 200 milliseconds from its first case on; the killed one gets SIGKILL while it
works on a case. Result: results/labeling_ranks.md.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import running
from pool_scale import compare, prepare, round_folder

from flaresemi.cli import semi_round
from flaresemi.selection import load_scores

TRAINING = ("--iterations", 40, "--learning-rate", 0.01, "--ema-decay", 0, "--validations", 0, "--device", "cpu",
            "--precision", "fp32")  # fmt: skip
ROUND = ("--fold", "0", "--select", "case", "--device", "cpu", "--precision", "fp32")

#: What is done to the second process once it has begun: its number is given, True when it is over.
Fate = Callable[[int], bool]


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--distinct", type=int, default=20, help="phantoms without noise")
    options = parser.parse_args()
    bench = running.Bench("labeling_ranks", options.work)
    start = bench.work / "start"
    data = prepare(bench, start, options.cases, options.distinct)
    bench.command("FINE", "flaresemi_train", "FINE", 0, "-d", data, "-w", start, *TRAINING, "--continue")
    variants: dict[str, tuple[int, str, Fate | None]] = {
        "1 rank": (1, "torchrun", None),
        "2 ranks": (2, "torchrun", None),
        "4 ranks": (4, "torchrun", None),
        "4 ranks, one slowed tenfold": (4, "torchrun", slow_down),
        "4 ranks, one killed, all started again": (4, "torchrun", kill),
        "4 tasks of an array, one killed": (4, "slurm", kill),
    }
    for name, variant in variants.items():
        if name not in bench.steps:
            label(bench, name, *variant)
    report(bench, options.cases, list(variants))


def workspace_of(bench: running.Bench, name: str) -> Path:
    return bench.work / re.sub(r"\W+", "_", name)


def label(bench: running.Bench, name: str, count: int, launcher: str, fate: Fate | None) -> None:
    """Labels the pool in one way, puts the scores together, and notes what came of it."""
    workspace, start = workspace_of(bench, name), bench.work / "start"
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(start, workspace, ignore=shutil.ignore_patterns("preprocessed", "rounds"))
    (workspace / "preprocessed").symlink_to(start / "preprocessed")
    place = ["-d", str(bench.work / "demo" / "data"), "-w", str(workspace), *ROUND]
    program = [str(Path(sys.executable).parent / "flaresemi_semi_round"), *place, "--shard", launcher]
    print(f"[{bench.name}] {name}", flush=True)
    log, started = workspace / "label.log", time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        if launcher == "torchrun":
            words = ["--standalone", f"--nproc-per-node={count}", "--max-restarts=3", "--no-python", *program]
            launch = [sys.executable, "-m", "torch.distributed.run", *words]
            processes = [subprocess.Popen(launch, stdout=file, stderr=subprocess.STDOUT)]
        else:
            array = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
            processes = [
                subprocess.Popen(
                    program,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | array | {"SLURM_ARRAY_TASK_ID": str(number)},
                )
                for number in range(count)
            ]
        victim, is_over = None, fate is None
        while any(process.poll() is None for process in processes):
            if victim is None and not is_over:
                victim = one_at_work(processes, launcher, workspace)
            if victim is not None and not is_over and fate is not None:
                is_over = fate(victim)
            else:
                time.sleep(0.02)
    seconds = time.monotonic() - started
    codes = [process.returncode for process in processes]
    expected = [0] * len(processes) if launcher == "torchrun" else [0, -signal.SIGKILL, 0, 0]
    if codes != expected or (fate is not None and victim is None):
        raise SystemExit(f"{name}: exit codes {codes}, victim {victim}; see {log}")
    if semi_round.main([*place, "--step", "select", "--quiet"]):
        raise SystemExit(f"{name}: the scores could not be put together")
    times = [path.stat().st_mtime for path in (round_folder(workspace) / "case_scores").glob("*.json")]
    shares = [int(each) for each in re.findall(r"labeled (\d+) of \d+ cases here", log.read_text(encoding="utf-8"))]
    bench.record(
        name,
        seconds=seconds,
        labeling=max(times) - min(times),
        shares=sorted(shares, reverse=True),
        cases=[score.case_id for score in load_scores(round_folder(workspace) / "scores.csv")],
    )


def one_at_work(processes: list[subprocess.Popen], launcher: str, workspace: Path) -> int | None:
    """The second process (rank 1), once it has joined in the work: it has claimed a case."""
    if launcher == "slurm":
        found = [processes[1].pid]
    else:
        parent = processes[0].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
        found = [int(child) for child in children if b"\0RANK=1\0" in read(Path(f"/proc/{child}/environ"))]
    claimed = str((round_folder(workspace) / "claimed").resolve())
    for pid in found:
        try:
            if any(os.path.dirname(os.readlink(entry)) == claimed for entry in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
        except OSError:  # it ended, or closed a file, while we looked
            continue
    return None


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def slow_down(pid: int) -> bool:
    """Lets a process run for a tenth of the time."""
    try:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.18)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return True
    time.sleep(0.02)
    return False


def kill(pid: int) -> bool:
    """Ends a process when it has just claimed a case."""
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return True


def report(bench: running.Bench, cases: int, variants: list[str]) -> None:
    reference = workspace_of(bench, variants[0]) / "rounds"
    lines = [
        f"# {cases} unlabeled cases, shared by processes",
        "",
        "Each variant has its own workspace; afterwards the scores are put together. Files: label maps, scores,",
        "observations and selection, compared byte by byte with those of one rank. The machine was busy with other",
        "work: times are upper bounds, and there is no speedup to be seen with more processes than free cores.",
        "",
        "| variant | command, s | cases, s | by rank 0, or each task | labeled once | files equal | different |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    trouble = []
    for name in variants:
        step = bench.steps[name]
        same, different = compare(reference, workspace_of(bench, name) / "rounds")
        once = len(set(step["cases"])) if len(set(step["cases"])) == len(step["cases"]) else 0
        shares = " + ".join(map(str, step["shares"]))
        times = f"{step['seconds']:.0f} | {step['labeling']:.1f}"
        lines.append(f"| {name} | {times} | {shares} | {once} | {same} | {len(different)} |")
        trouble += [f"{name}: {each}" for each in different] + ([f"{name}: {once} cases"] if once != cases else [])
    lines += ["", "A killed process does not say how many cases it labeled."]
    bench.report("\n".join([*lines, "", *(f"* {each}" for each in trouble[:20])]))
    if trouble:
        raise SystemExit("the variants differ")


if __name__ == "__main__":
    main()
