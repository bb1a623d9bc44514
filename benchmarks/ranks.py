"""A round, and a prediction, of 1, 2 and 4 processes of one thread each: how fast, and are the files the same?

Phantoms of 48³ voxels, two stages, tiny networks, SGD, fp32, gloo. One workspace with trained models is copied for each
variant. Times are those that the round itself keeps of its steps, without the start of the processes. Besides: one rank
that may run for a tenth of the time, one that is killed in the middle of FINE's training (all start again from the last
checkpoint), two network namespaces as hosts with torchrun's rendezvous (needs root and `ip`), and two folds side by
side, with and without one that is killed. Result: results/ranks.md.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import running
import torch
from kill_rounds import compare
from two_hosts import HOSTS, namespaces

from flaresemi.networks.checkpoint import load_checkpoint

BIN = Path(sys.executable).parent
FIXED = ("--device", "cpu", "--precision", "fp32")
TRAINING = ("--iterations-per-epoch", 5, "--batch-size", 4, "--ema-decay", 0, "--validations", 0,
            "--checkpoint-minutes", 0.02, "--loader-workers", 0, *FIXED)  # fmt: skip
SGD, ADAMW = ("--optimizer", "sgd"), ("--optimizer", "adamw", "--learning-rate", 0.01)
ROUND = ("--rounds", "1", "--select", "case", "--best-share", "0.75", *FIXED)
STEPS = ("label", "train COARSE", "train FINE", "validate")

#: What is done to a launch while it runs: gets its process and its workspace.
Fate = Callable[[subprocess.Popen, Path], None]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run the round."""

    ranks: int
    folds: tuple[str, ...] = ("0",)
    restarts: int = 0
    fate: Fate | None = None
    hosts: bool = False
    again: bool = False


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--steps", type=int, default=120, help="of a training")
    parser.add_argument("--cases", type=int, default=24, help="unlabeled ones, and test cases")
    parser.add_argument("--variants", nargs="+", choices=tuple(all_variants()), default=list(all_variants()))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    bench = running.Bench("ranks", options.work)
    start = begin(bench, options.steps, options.cases)
    bench.record("sizes", steps=options.steps, cases=options.cases)
    variants = {name: all_variants()[name] for name in options.variants}
    for name, variant in variants.items():
        if name not in bench.steps:
            go_through(bench, name, variant, start)
            report(bench, variants)
    for count in (1, 2, 4):
        if f"predict {count}" not in bench.steps:
            predict(bench, count, start)
            report(bench, variants)


def all_variants() -> dict[str, Variant]:
    """What is tried, by name."""
    return {
        "1 rank": Variant(1),
        "2 ranks": Variant(2),
        "4 ranks": Variant(4),
        "2 ranks, one slowed tenfold": Variant(2, fate=slow_down),
        "2 ranks, one killed in FINE": Variant(2, fate=kill, restarts=1),
        "2 hosts, 1 rank each": Variant(1, hosts=True),
        "2 folds in turn, 1 rank": Variant(1, folds=("0", "1")),
        "2 folds side by side": Variant(2, folds=("0", "1")),
        "2 folds side by side, one killed": Variant(2, folds=("0", "1"), fate=kill_chain, again=True),
    }


def begin(bench: running.Bench, length: int, cases: int) -> Path:
    """The dataset and the trained workspace."""
    data, start = bench.work / "demo" / "data", bench.work / "start"
    size = ("--size", "tiny", "--labeled", 8, "--unlabeled", cases, "--test", cases, "--seed", 5, "--workers", 1)
    bench.command("data", "flaresemi_demo", "-o", bench.work / "demo", "--only-data", *size)
    if "plan" not in bench.steps:
        words = ("-d", data, "-w", start, "--stages", "two", "--folds", 2, "--workers", 1)
        bench.command("plans", "flaresemi_plan_and_preprocess", *words, "--plan-only")
        running.shrink(start / "plans.json")
        bench.command("plan", "flaresemi_plan_and_preprocess", "-d", data, "-w", start, "--workers", 1)
    for stage in ("COARSE", "FINE"):
        words = (stage, 0, "-d", data, "-w", start, "--iterations", length, *TRAINING, *SGD, "--continue")
        bench.command(f"{stage} 0", "flaresemi_train", *words)
    if "copy" not in bench.steps:
        shutil.copytree(start, bench.work / "folds", ignore=shutil.ignore_patterns("models"))
        bench.record("copy")
    for fold in "01":
        for stage in ("COARSE", "FINE"):
            words = (stage, fold, "-d", data, "-w", bench.work / "folds", "--iterations", 2 * length, *TRAINING, *ADAMW)
            bench.command(f"folds, {stage} {fold}", "flaresemi_train", *words, "--continue")
    return start


def workspace_of(bench: running.Bench, name: str) -> Path:
    return bench.work / name.replace(",", "").replace(" ", "_")


def go_through(bench: running.Bench, name: str, variant: Variant, start: Path) -> None:
    """One round in one way. All of them run at the same path, which the records of students name."""
    workspace = bench.work / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(start if len(variant.folds) == 1 else bench.work / "folds", workspace)
    words = ["-d", str(bench.work / "demo" / "data"), "-w", str(workspace), "--fold", *variant.folds, *ROUND]
    print(f"[{bench.name}] {name}", flush=True)
    log = workspace_of(bench, name).with_suffix(".log")
    started = time.monotonic()
    codes = on_hosts(words, log) if variant.hosts else [on_one(words, log, variant, workspace)]
    seconds = time.monotonic() - started
    if variant.again:
        assert codes == [2], codes
        told = log.read_text(encoding="utf-8")
        lines = [line for line in told.splitlines() if "have failed" in line or "was killed" in line]
        state = steps(workspace, "0")
        codes = [on_one(words, log, dataclasses.replace(variant, fate=None), workspace)]
        bench.record("failure", told=lines, other=all(step["done"] for step in state.values()))
    if any(codes):
        raise SystemExit(f"{name}: exit codes {codes}; see {log}")
    kept = workspace_of(bench, name)
    shutil.rmtree(kept, ignore_errors=True)
    workspace.rename(kept)
    made = {fold: {step: each["seconds"] for step, each in steps(kept, fold).items()} for fold in variant.folds}
    bench.record(name, seconds=seconds, steps=made, made=running.when_and_what())


def steps(workspace: Path, fold: str) -> dict:
    path = workspace / "rounds" / f"fold_{fold}" / "round_1" / "round.json"
    return json.loads(path.read_text(encoding="utf-8"))["steps"]


def on_one(words: list[str], log: Path, variant: Variant, workspace: Path) -> int:
    """On this machine; what shall happen happens meanwhile."""
    command = [
        BIN / "flaresemi_semi_round",
        *words,
        "--gpus",
        str(variant.ranks),
        "--max-restarts",
        str(variant.restarts),
    ]
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        if variant.fate is not None:
            variant.fate(process, workspace)
        return process.wait()


def on_hosts(words: list[str], log: Path) -> list[int]:
    """One rank in each of two network namespaces."""
    with namespaces(), open(log, "a", encoding="utf-8") as file:
        hosts = []
        for host, address in HOSTS.items():
            launch = [*("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run")]
            launch += ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--local-addr", address]
            launch += ["--rdzv-endpoint", f"{HOSTS['flaresemi_a']}:29500"]
            # torchrun would ask the machine's name for this, which is the same in both.
            launch += ["--rdzv-conf", f"is_host={int(host == 'flaresemi_a')}", "-m", "flaresemi.cli.semi_round", *words]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": host}
            hosts.append(subprocess.Popen(launch, stdout=file, stderr=subprocess.STDOUT, env=environment))
        return [host.wait() for host in hosts]


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def has(pid: int, part: bytes, of: str) -> bool:
    try:
        return part in Path(f"/proc/{pid}/{of}").read_bytes()
    except OSError:
        return False


def rank_one(process: subprocess.Popen) -> int | None:
    return next((pid for pid in descendants(process.pid) if has(pid, b"\0RANK=1\0", "environ")), None)


def slow_down(process: subprocess.Popen, workspace: Path) -> None:
    """Lets the second rank run for 20 of every 200 ms."""
    while process.poll() is None:
        victim = rank_one(process)
        if victim is None:
            time.sleep(0.1)
            continue
        try:
            os.kill(victim, signal.SIGSTOP)
            time.sleep(0.18)
            os.kill(victim, signal.SIGCONT)
        except ProcessLookupError:
            return
        time.sleep(0.02)


def wait_for_steps(process: subprocess.Popen, path: Path) -> None:
    while process.poll() is None and (not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < 4):
        time.sleep(0.02)


def kill(process: subprocess.Popen, workspace: Path) -> None:
    """Kills the second rank in the middle of FINE's training."""
    wait_for_steps(process, workspace / "rounds/fold_0/round_1/models/fold_0/FINE/history.jsonl")
    os.kill(rank_one(process) or 0, signal.SIGKILL)


def kill_chain(process: subprocess.Popen, workspace: Path) -> None:
    """Kills the process of the second fold in the middle of FINE's training."""
    wait_for_steps(process, workspace / "rounds/fold_1/round_1/models/fold_1/FINE/history.jsonl")
    victim = next(pid for pid in descendants(process.pid) if has(pid, b"--chain\0001\0", "cmdline"))
    os.kill(victim, signal.SIGKILL)


def predict(bench: running.Bench, count: int, start: Path) -> None:
    images, output = bench.work / "demo" / "data" / "test_image", bench.work / f"predictions_{count}"
    shutil.rmtree(output, ignore_errors=True)
    words = ["-i", images, "-o", output, "-m", start / "models", "--fold", "0", "--threads", "1", "--engine", "torch"]
    command = [BIN / "flaresemi_predict", *words, "--gpus", count, *FIXED]
    started = time.monotonic()
    with open(bench.work / f"predict_{count}.log", "w", encoding="utf-8") as log:
        if subprocess.run(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            raise SystemExit(f"see {log.name}")
    times = sorted(path.stat().st_mtime for path in output.glob("*.nii.gz"))
    bench.record(
        f"predict {count}",
        seconds=time.monotonic() - started,
        between=times[-1] - times[0],
        made=running.when_and_what(),
    )


def far(one: Path, other: Path) -> tuple[int, int, list[str], float]:
    """Of two rounds: files that are the same, weights that differ, other files that do, largest difference of weights.

    The difference is relative to the largest weight of its tensor.
    """
    same, different = compare(one, other)
    weights = [each for each in different if each.endswith(": weights bit for bit")]
    largest = 0.0
    for each in weights:
        name = each.removesuffix(": weights bit for bit")
        ours, theirs = (load_checkpoint(root / name).weights for root in (one, other))
        for key, ours_of_it in ours.items():
            scale = float(ours_of_it.abs().max()) or 1.0
            largest = max(largest, float((ours_of_it - theirs[key]).abs().max()) / scale)
    rest = [each for each in different if each not in weights]
    return sum(same.values()), len(weights), rest, largest


def same_labels(bench: running.Bench, count: int) -> tuple[int, int]:
    names = sorted(path.name for path in (bench.work / "predictions_1").glob("*.nii.gz"))
    pairs = [[(bench.work / f"predictions_{each}" / name).read_bytes() for each in (1, count)] for name in names]
    return sum(one == other for one, other in pairs), len(names)


def report(bench: running.Bench, variants: dict[str, Variant]) -> None:
    length, cases = bench.steps["sizes"]["steps"], bench.steps["sizes"]["cases"]
    lines = [
        "# Rounds and predictions of several processes",
        "",
        f"Phantoms of 48³ voxels ({cases} unlabeled, 4 held out, {cases} test), tiny networks, {length} steps of 4",
        "patches a stage, fp32, gloo, SGD (two folds: twice as many steps, AdamW); one thread a process. Seconds are",
        "those of the steps, without the start of processes; they say something about speed where each process has a",
        "core to itself.",
        "",
        "| variant | label, s | train COARSE, s | train FINE, s | validate, s | whole command, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, variant in variants.items():
        if name in bench.steps:
            for fold in variant.folds:
                made = bench.steps[name]["steps"][fold]
                which = f"{name}: fold {fold}" if len(variant.folds) > 1 else name
                whole = f"{bench.steps[name]['seconds']:.0f}" if fold == variant.folds[0] else ""
                lines.append(f"| {which} | " + " | ".join(f"{made[step]:.1f}" for step in STEPS) + f" | {whole} |")
    if "predict 1" in bench.steps:
        lines += [
            "",
            "## Prediction",
            "",
            "| processes | between the first and the last label map, s | whole command, s | equal files |",
            "|---:|---:|---:|---|",
        ]
        for count in (1, 2, 4):
            if f"predict {count}" in bench.steps:
                step, (equal, total) = bench.steps[f"predict {count}"], same_labels(bench, count)
                lines.append(f"| {count} | {step['between']:.1f} | {step['seconds']:.1f} | {equal} of {total} |")
    lines += [
        "",
        "## Files",
        "",
        "Every file of the round against that of one process (of the folds in turn, for two folds). Pictures, reports",
        "and TensorBoard's logs, which show times, are left out; so are times within the others.",
        "",
        "| variant | the same | weights that differ | by, of the largest weight | other files that differ |",
        "|---|---:|---:|---:|---|",
    ]
    trouble = {}
    for name, variant in variants.items():
        reference = "1 rank" if len(variant.folds) == 1 else "2 folds in turn, 1 rank"
        if name in bench.steps and reference in bench.steps and name != reference:
            same, weights, rest, largest = far(*(workspace_of(bench, each) / "rounds" for each in (reference, name)))
            lines.append(f"| {name} | {same} | {weights} | {largest:.1e} | {len(rest)} |")
            trouble[name] = rest
    records = sorted({each.split(": ")[0].rpartition("round_1/")[2] for rest in trouble.values() for each in rest})
    lines += ["", f"The others, which tell of the weights and of the processes: {', '.join(records)}."]
    if "failure" in bench.steps:
        failure = bench.steps["failure"]
        other = "had come to its end" if failure["other"] else "**had not come to its end**"
        lines += ["", f"What was said of the fold that was killed ({'; '.join(failure['told'])}); the other {other}."]
    bench.report("\n".join(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
