"""Hippocampus MR, one stage: does a training with --time-budget take that time, whatever else the machine does?

Four trainings: on a quiet machine, beside busy processes (two per core) in the first quarter of the budget, beside them
in the second half, and one that is stopped by SIGTERM in the middle and continued. Result: results/time_budget.md.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import running

from flaresemi.machine import available_cores

#: Load of a run: from and to which part of the budget.
LOADS = {
    "quiet": (0.0, 0.0),
    "busy start": (0.0, 0.25),
    "busy second half": (0.5, 1.0),
    "stopped, continued": (0.0, 0.0),
}


def burn() -> None:
    """Keeps a core busy until its parent is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        sum(range(200_000))


def train(log: Path, words: list[object], load: tuple[float, float], budget: float, stop_after: float) -> None:
    """Runs one training beside its load, and stops it after so many seconds of training."""
    with open(log, "a", encoding="utf-8") as file:
        program = Path(sys.executable).parent / "flaresemi_train"
        process = subprocess.Popen([program, *map(str, words)], stdout=file, stderr=subprocess.STDOUT)
        begun = time.monotonic()  # a few seconds before the training, which has to import torch first
        others: list[multiprocessing.Process] = []
        while process.poll() is None:
            part = (time.monotonic() - begun) / budget
            wanted = 2 * available_cores() if load[0] <= part < load[1] else 0
            while len(others) < wanted:
                others.append(multiprocessing.Process(target=burn, daemon=True))
                others[-1].start()
            while len(others) > wanted:
                others.pop().kill()
            if time.monotonic() - begun > stop_after:
                process.send_signal(signal.SIGTERM)
                stop_after = float("inf")
            time.sleep(0.2)
        for other in others:
            other.kill()


def facts(folder: Path) -> dict[str, object]:
    """What a training left behind."""
    from flaresemi.networks.checkpoint import load_checkpoint
    from flaresemi.records import load_record
    from flaresemi.training.history import read_history
    from flaresemi.training.runs import RunRecord
    from flaresemi.workspace import ModelFolder

    model = ModelFolder(folder)
    record = load_record(model.run_record, RunRecord)
    schedule, rows = record.schedule, read_history(model.history)
    snapshots = [load_checkpoint(model.snapshot(percent)).iteration for percent in record.config.snapshot_percents]
    state = load_checkpoint(model.latest, with_training_state=True).training_state or {}
    return {
        "seconds": json.loads(str(state["budget"]))["spent_seconds"],
        "first": schedule.decisions[0].total_iterations
        if schedule.decisions and not schedule.decisions[0].iteration
        else record.recipe.total_iterations,
        "steps": rows[-1]["iteration"],
        "decisions": len(schedule.decisions),
        "progress": schedule.place(int(str(rows[-1]["iteration"]))) / record.recipe.total_iterations,
        "snapshots": [schedule.place(step) / record.recipe.total_iterations for step in snapshots],
        "rates": [max(float(str(row["learning_rate"])) for row in rows), float(str(rows[-1]["learning_rate"]))],
        "validation": [row["validation_mean"] for row in rows if "validation_mean" in row][-1],
    }


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=120, help="the budget")
    options = parser.parse_args()
    data = running.need(running.SHARED / "hippocampus")
    bench = running.Bench("time_budget", options.work)
    workspace = bench.work / "workspace"
    place = ("-d", data, "-w", workspace)
    bench.command("plan", "flaresemi_plan_and_preprocess", *place, "--preset", "small", "--stages", "one")
    lines = [
        f"# A budget of {options.seconds:g} s",
        "",
        "Hippocampus, FINE, fold 0; in busy times two processes per core compute beside the training. Seconds are "
        "those of the training (reading, steps, validations, checkpoints), without the start of the program and the "
        "validation on whole images after it.",
        "",
        "| run | seconds | of the budget | steps, as it looked at first | steps | decisions | progress "
        "| snapshots at | highest and last learning rate | validation Dice |",
        "|---|---:|---:|---:|---:|---:|---:|---|---|---:|",
    ]
    for name, load in LOADS.items():
        if name not in bench.steps:
            words = [
                "FINE",
                "0",
                *place,
                "--time-budget",
                f"{options.seconds:g}s",
                "--batch-size",
                2,
                "--no-validation",
            ]
            stop = 0.5 * options.seconds if "stopped" in name else float("inf")
            train(bench.work / f"{name}.log", [*words, "--restart"], load, options.seconds, stop)
            if "stopped" in name:
                train(bench.work / f"{name}.log", [*words, "--continue"], load, options.seconds, float("inf"))
            bench.record(name, **facts(workspace / "models" / "fold_0" / "FINE"), made=running.when_and_what())
        found = bench.steps[name]
        snapshots = ", ".join(f"{100 * share:.1f} %" for share in found["snapshots"])
        lines.append(
            f"| {name} | {found['seconds']:.1f} | {100 * found['seconds'] / options.seconds:.1f} % | {found['first']} "
            f"| {found['steps']} | {found['decisions']} | {found['progress']:g} | {snapshots} "
            f"| {found['rates'][0]:.2g}, {found['rates'][1]:.2g} | {found['validation']:.3f} |"
        )
        bench.report("\n".join(lines))


if __name__ == "__main__":
    main()
