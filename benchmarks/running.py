"""What the long benchmarks share: commands run once, a log of them, results with date and machine."""

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "work"
SHARED = ROOT.parent / "shared" / "data"


class Bench:
    """A folder of work where each step is run once; a second start goes on with the steps that are missing.

    Several processes may work in it at once, on steps of their own.

    Attributes:
        work: The folder.
        results: benchmarks/results; with another folder of work than the usual one, that.
        inside: Commands run in this process: short ones, which would take longer to import torch than to run.
    """

    inside = False

    def __init__(self, name: str, work: Path) -> None:
        self.name = name
        self.work = work / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.results = RESULTS if work == WORK else self.work
        self._steps_file = self.work / "steps.json"
        self.steps: dict[str, dict] = load_json(self._steps_file)

    def command(self, step: str, program: str, *words: object) -> float:
        """Runs a flaresemi command of the environment that runs this script; returns its seconds.

        A step that was stopped and started again counts the time of its last part only, which the log shows.
        """
        if step in self.steps:
            return self.steps[step]["seconds"]
        line = [program, *map(str, words)]
        print(f"[{self.name}] {shlex.join(line)}", flush=True)
        started = time.monotonic()
        with open(self.work / f"{step}.log", "a", encoding="utf-8") as log:
            code = self._here(line, log) if self.inside else _beside(line, log)
        if code:
            raise SystemExit(f"{step} ended with code {code}; see {self.work / f'{step}.log'}")
        self.record(step, seconds=time.monotonic() - started, command=shlex.join(line), made=when_and_what())
        return self.steps[step]["seconds"]

    @staticmethod
    def _here(line: Sequence[str], log: TextIO) -> int:
        module = importlib.import_module(f"flaresemi.cli.{line[0].removeprefix('flaresemi_')}")
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            return module.main(line[1:])

    def record(self, step: str, **facts: object) -> None:
        """Keeps what a step gave."""
        with alone(self._steps_file):
            self.steps = {**load_json(self._steps_file), step: facts}
            self._steps_file.write_text(json.dumps(self.steps, indent=2) + "\n")

    def report(self, text: str) -> None:
        """Writes NAME.md into `results`: the text, the commands with their times and dates, the machine."""
        lines = [text.rstrip(), "", "| step | command | seconds | date, flaresemi |", "|---|---|---:|---|"]
        for step, facts in self.steps.items():
            if "command" in facts:
                command = facts["command"].replace(str(self.work), "WORK").replace(str(SHARED), "../shared/data")
                command = command.replace(f"{ROOT}/", "")
                lines.append(f"| {step} | `{command}` | {facts['seconds']:.0f} | {facts.get('made', '')} |")
        self.publish(lines)

    def publish(self, lines: Sequence[str]) -> None:
        """Writes NAME.md into `results`: these lines, and the machine."""
        text = "\n".join([*lines, "", machine()])
        self.results.mkdir(parents=True, exist_ok=True)
        (self.results / f"{self.name}.md").write_text(text + "\n")
        print(text)


def _beside(line: Sequence[str], log: TextIO) -> int:
    program = Path(sys.executable).parent / line[0]
    return subprocess.run([program, *line[1:]], stdout=log, stderr=subprocess.STDOUT, check=False).returncode


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other processes from changing a file between reading and writing it."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def load_json(path: Path) -> dict:
    """What a file holds; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def machine() -> str:
    """One line: processor, cores, GPU, versions."""
    import torch

    from flaresemi.compute.device import available_cores, device_name, select_device

    device = select_device()
    gpu = device_name(device) if device.type == "cuda" else "no GPU"
    return (
        f"{device_name(torch.device('cpu'))}, {available_cores()} cores, {gpu}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def when_and_what() -> str:
    """Date and revision."""
    from flaresemi.training.runs import git_revision

    return f"{datetime.date.today().isoformat()}, {git_revision()}"


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with `--work` (where everything is written) and `--minutes` (of training)."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--work", type=Path, default=WORK, help="folder for all that is written")
    return made


def phantom_models(parser: argparse.ArgumentParser) -> None:
    """Adds `-m`: models of 13 organs, which benchmarks/coarse_to_fine.py trains."""
    usual = WORK / "coarse_to_fine" / "two" / "models"
    parser.add_argument("-m", "--model", type=Path, default=usual, help="folder of trained models")


def phantom_bench(name: str, description: str | None) -> tuple[Bench, Path]:
    """A benchmark of those models, by its command line; and their folder."""
    made = parser(description or "")
    phantom_models(made)
    options = made.parse_args()
    return Bench(name, options.work), need(options.model)


def phantom_scan(file: Path, seed: int, slices: int, *, vary: bool) -> None:
    """Writes a CT of 512×512 by so many slices, where it is missing."""
    from flaresemi.io.images import write_label_map
    from flaresemi.phantom import make_phantom

    if not file.exists():
        phantom = make_phantom(seed, shape_zyx=(slices, 512, 512), vary=vary)
        write_label_map(file, phantom.image_hu, phantom.source)


def halve_features(plans_file: Path, patch_zyx: tuple[int, int, int] | None = None) -> None:
    """Gives FINE of plans.json the features that preset `small` has for COARSE, half of its own.

    Args:
        plans_file: It is changed.
        patch_zyx: FINE's patch from then on; None: as planned.
    """
    from flaresemi.planning.presets import PRESETS
    from flaresemi.plans import load_plans
    from flaresemi.records import save_record

    plans = load_plans(plans_file)
    features = PRESETS["small"].coarse_features[: len(plans.fine.network.features)]
    network = dataclasses.replace(plans.fine.network, features=features)
    fine = dataclasses.replace(plans.fine, network=network, patch_zyx=patch_zyx or plans.fine.patch_zyx)
    save_record(plans_file, dataclasses.replace(plans, fine=fine))


def shrink(plans_file: Path, edge: int = 32) -> None:
    """Replaces the planned networks by ones that take a fraction of a second a step, on patches of that edge."""
    plans = load_json(plans_file)
    for stage in ("coarse", "fine"):
        network = plans[stage]["network"]
        for name in ("kernels", "strides"):
            network[name] = network[name][:3]
        network |= {"features": [8, 16, 16], "encoder_convs": [1, 1, 1], "decoder_convs": [1, 1]}
        plans[stage] |= {"patch_zyx": [edge] * 3, "batch_size": 2}
    plans_file.write_text(json.dumps(plans, indent=2), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a process took.

    Attributes:
        seconds: By the clock.
        cpu_seconds: Of processor time, with that of its children that have ended.
        peak_mib: The largest resident memory of it or one of them; never less than what this process had, which Linux
            counts as its child's until the command begins.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float


def spent(command: Sequence[str], log: Path | None = None, environment: Mapping[str, str] = os.environ) -> Spent:
    """Runs a process to its end, which must be a good one; what it says goes into `log`, if there is one."""
    started = time.monotonic()
    with open(log, "wb") if log else contextlib.nullcontext() as file:
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), each) for each in (1, 2)] if file else []
        process = os.posix_spawn(command[0], command, environment, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with status {status}" + (f"; see {log}" if log else ""))
    return Spent(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def need(path: Path) -> Path:
    """The path, if it is there; otherwise the benchmark ends, saying what it needs."""
    if not path.exists():
        raise SystemExit(f"this benchmark needs {path}")
    return path


def summary_table(path: Path) -> str:
    """Dice, NSD and HD95 per organ of a summary.json, as a Markdown table."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| organ | Dice | NSD | HD95 mm |", "|---|---:|---:|---:|"]

    def show(statistics: dict | None, digits: int = 3) -> str:
        return "–" if not statistics else f"{statistics['mean']:.{digits}f}"

    for organ in summary["organs"]:
        lines.append(
            f"| {organ['name']} | {show(organ['dice'])} | {show(organ['nsd'])} | {show(organ['hd95_mm'], 1)} |"
        )
    return "\n".join([*lines, f"| **mean** | **{summary['mean_dice']:.3f}** | **{summary['mean_nsd']:.3f}** | |"])


def mean_dice(path: Path) -> float:
    """Mean over the organs of their mean Dice, from a summary.json."""
    return float(json.loads(path.read_text(encoding="utf-8"))["mean_dice"])


def link_or_copy(source: Path, target: Path) -> None:
    """Puts a file where a dataset folder wants it, without copying where links work."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.symlink(source, target)
