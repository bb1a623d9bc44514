"""Fuzzing in processes of their own, so that a hang, a crash of a library or a flood of memory is seen and named."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

#: What an input may take: seconds, and bytes of address space more than the process has at its start.
MOST_SECONDS = 10
MOST_BYTES = 1 << 30


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of the inputs of one kind.

    Attributes:
        counts: Inputs that were 'refused', 'read' or a 'finding'.
        findings: The number of an input, and what happened.
    """

    counts: Counter = dataclasses.field(default_factory=Counter)
    findings: list[tuple[int, str]] = dataclasses.field(default_factory=list)


def fuzz(kind: str, first: int, count: int, shared: Path | None, *, most_seconds: float | None = None) -> Outcome:
    """Tries the inputs `first` and up, until there are `count` or the time is up.

    Args:
        kind: Name of a target.
        shared: Folder of odd real files.
        most_seconds: Of processor time, for all of them.
    """
    outcome = Outcome()
    stop = first + count
    while first < stop:
        spent = _seconds(resource.RUSAGE_CHILDREN)
        words = [sys.executable, "-m", "tests.trust.batches", kind, str(first), str(stop), str(shared or ""),
                 "" if most_seconds is None else str(most_seconds)]  # fmt: skip
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        for number, result, text in lines:
            if result != "begun":
                outcome.counts[result] += 1
            if result == "finding":
                outcome.findings.append((number, text))
        if done.returncode == 0:
            return outcome
        begun = [number for number, result, _ in lines if result == "begun"]
        if not begun:
            raise RuntimeError(f"the process of '{kind}' did not begin: {done.stderr[-2000:]}")
        outcome.counts["finding"] += 1
        outcome.findings.append((begun[-1], _why(done.returncode, done.stderr)))
        first = begun[-1] + 1
        if most_seconds is not None:
            most_seconds -= _seconds(resource.RUSAGE_CHILDREN) - spent
    return outcome


def _seconds(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _why(code: int, errors: str) -> str:
    if code == -signal.SIGALRM:
        return f"more than {MOST_SECONDS} s"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the process died: {name}; {errors.strip()[-300:]}"


def _run(kind: str, first: int, stop: int, shared: Path | None, most_seconds: float | None) -> None:
    from tests.trust.targets import SCRATCH, targets, try_one

    target = targets(shared)[kind]()
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, size + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    started = _seconds(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        for number in range(first, stop):
            if most_seconds is not None and _seconds(resource.RUSAGE_SELF) - started > most_seconds:
                return
            print(json.dumps([number, "begun", ""]), flush=True)
            signal.alarm(MOST_SECONDS)
            try:
                result, text = try_one(target, f"{kind} {number}", Path(scratch) / "in"), ""
            except Exception as problem:  # noqa: BLE001 (all that may come is a finding)
                frames = traceback.extract_tb(problem.__traceback__)
                ours = [frame for frame in frames if "/flaresemi/" in frame.filename] or frames
                where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
                result, text = "finding", f"{type(problem).__name__}: {str(problem)[:300]} at {where}"
            signal.alarm(0)
            print(json.dumps([number, result, text]), flush=True)


if __name__ == "__main__":
    _kind, _first, _stop, _shared, _time = sys.argv[1:]
    _run(_kind, int(_first), int(_stop), Path(_shared) if _shared else None, float(_time) if _time else None)
