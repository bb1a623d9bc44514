"""A round of self-training, killed (SIGKILL) at a random moment and started again: is anything different?

A phantom dataset of 48³ voxels, two stages, tiny networks. One copy of the trained workspace goes through a round in
one go. Ten others are killed once each, somewhere in their tenth of the round, and go on; then every file that they
left is compared with that of the first. Result: results/kill_rounds.md.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import running
import torch

from flaresemi.io.images import read_label_map
from flaresemi.networks.checkpoint import load_checkpoint

os.environ["OMP_NUM_THREADS"] = "1"

#: Times, and the revision of a working tree that others change meanwhile; all else must not differ.
TIMES = {"seconds", "patches_per_second", "started", "continued", "git_revision"}

TRAINING = ("--iterations", 400, "--learning-rate", 0.01, "--ema-decay", 0, "--validations", 2, "--device", "cpu",
            "--precision", "fp32", "--checkpoint-minutes", 0.05)  # fmt: skip
ROUND = ("--fold", "0", "--rounds", "1", "--select", "case", "--best-share", "0.75", "--length", "0.25",
         "--device", "cpu", "--precision", "fp32")  # fmt: skip


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    bench = running.Bench("kill_rounds", options.work)
    data, start = bench.work / "demo" / "data", bench.work / "start"
    bench.command(
        "data",
        "flaresemi_demo",
        "-o",
        bench.work / "demo",
        "--only-data",
        "--size",
        "tiny",
        "--labeled",
        8,
        "--unlabeled",
        8,
        "--test",
        0,
        "--seed",
        5,
        "--workers",
        1,
    )
    bench.command("plan", "flaresemi_plan_and_preprocess", "-d", data, "-w", start, "--stages", "two", "--workers", 1)
    if "shrink" not in bench.steps:
        running.shrink(start / "plans.json")
        bench.record("shrink")
    for stage in ("COARSE", "FINE"):
        bench.command(stage, "flaresemi_train", stage, 0, "-d", data, "-w", start, *TRAINING, "--continue")
    whole, workspace = bench.work / "never_killed", bench.work / "workspace"
    program = [str(Path(sys.executable).parent / "flaresemi_semi_round"), "-d", str(data)]
    with open(bench.work / "rounds.log", "a", encoding="utf-8") as log:
        if "round" not in bench.steps:
            copy(start, workspace)
            startup = run([*program, "-w", str(workspace), "--fold", "0", "--status"], log)
            seconds = run([*program, "-w", str(workspace), *ROUND], log)
            shutil.rmtree(whole, ignore_errors=True)
            workspace.rename(whole)  # the records name the place of the weights that the students started from
            bench.record("round", startup=startup, cpu_seconds=seconds)
        startup, whole_seconds = bench.steps["round"]["startup"], bench.steps["round"]["cpu_seconds"]
        kills = []
        for number in range(options.kills):
            step = f"kill {number + 1}"
            if step not in bench.steps:
                share = (number + random.Random(f"{options.seed} {number}").random()) / options.kills
                moment = startup + share * (whole_seconds - startup)
                copy(start, workspace)
                run([*program, "-w", str(workspace), *ROUND], log, kill_after=moment)
                begun = during(workspace)
                run([*program, "-w", str(workspace), *ROUND], log)
                same, different = compare(whole / "rounds", workspace / "rounds")
                bench.record(step, after=round(moment, 1), during=begun, same=same, different=different)
            kills.append(bench.steps[step])
            print(f"{step}: {kills[-1]}", flush=True)
    bench.report(text(kills, whole_seconds))
    if any(kill["different"] for kill in kills):
        raise SystemExit("some rounds differ")


def copy(start: Path, workspace: Path) -> None:
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(start, workspace)


def run(command: list[str], log: TextIO, kill_after: float | None = None) -> float:
    """Runs a command to its end, or kills it and its workers when it has used so much processor time.

    Processor time, since the moments shall not depend on what else the machine does.

    Returns:
        The processor time of its main process, s.
    """
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    used = 0.0
    while process.poll() is None:
        used = cpu_seconds(process.pid) or used
        if kill_after is not None and used >= kill_after:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return used
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"ended by itself with code {process.returncode} after {used:.1f} s: {' '.join(command)}")
    return used


def cpu_seconds(pid: int) -> float | None:
    """Processor time of a process; None when it is over."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def during(workspace: Path) -> str:
    """The step that was under way."""
    path = workspace / "rounds" / "fold_0" / "round_1" / "round.json"
    if not path.exists():
        return "before the first step"
    begun = [name for name, step in json.loads(path.read_text(encoding="utf-8"))["steps"].items() if not step["done"]]
    return begun[0] if begun else "between two steps, or after the last"


def compare(whole: Path, killed: Path) -> tuple[dict[str, int], list[str]]:
    """How many files of each kind are the same, and which are not."""
    names = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (whole, killed)]
    # TensorBoard, the picture of the curves and the report show times.
    names = [
        {name for name in each if "/logs/" not in name and not name.endswith(("curves.png", ".html"))} for each in names
    ]
    different = [f"only in one: {name}" for name in sorted(names[0] ^ names[1])]
    compared: dict[str, int] = {}
    for name in sorted(names[0] & names[1]):
        how, same = same_file(whole / name, killed / name)
        if same:
            compared[f"{kind(name)}: {how}"] = compared.get(f"{kind(name)}: {how}", 0) + 1
        else:
            different.append(f"{name}: {how}")
    return compared, different


def kind(name: str) -> str:
    for part, what in {
        "labels/": "pseudo-labels",
        "case_scores/": "scores of cases",
        "snapshot_": "weights",
        "checkpoint_": "weights",
        "validation/": "validation",
        "selection.json": "selection",
        "reliable": "selection",
    }.items():
        if part in name:
            return what
    return "records"


def same_file(one: Path, other: Path) -> tuple[str, bool]:
    """What was compared, and whether it is the same."""
    if one.read_bytes() == other.read_bytes():
        return "byte for byte", True
    if one.suffix == ".pt":
        ours, theirs = (load_checkpoint(path).weights for path in (one, other))
        return "weights bit for bit", ours.keys() == theirs.keys() and all(
            torch.equal(ours[name], theirs[name]) for name in ours
        )
    if one.name.endswith(".nii.gz"):
        return "every voxel", np.array_equal(read_label_map(one).array_zyx, read_label_map(other).array_zyx)
    if one.suffix in (".json", ".jsonl"):
        texts = (path.read_text(encoding="utf-8") for path in (one, other))
        ours, theirs = (
            [timeless(json.loads(line)) for line in ([text] if one.suffix == ".json" else text.splitlines())]
            for text in texts
        )
        return "all but times", ours == theirs
    return "byte for byte", False


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def text(kills: list[dict], seconds: float) -> str:
    lines = [
        "# Rounds that were killed and went on",
        "",
        f"Never killed, the round took {seconds:.0f} s of processor time.",
        "",
        "| killed after s of processor time | during | files that are the same | that differ |",
        "|---:|---|---:|---|",
    ]
    for kill in kills:
        lines.append(
            f"| {kill['after']} | {kill['during']} | {sum(kill['same'].values())} "
            f"| {'; '.join(kill['different']) or 'none'} |"
        )
    lines += ["", "What is the same, in the last of them:", "", "| | files |", "|---|---:|"]
    lines += [f"| {what} | {count} |" for what, count in sorted(kills[-1]["same"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
