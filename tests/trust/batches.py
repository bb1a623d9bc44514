"""Fuzzing in processes of their own, so that a hang, a crash of a library or a flood of memory is seen and named."""

import dataclasses
import json
import math
import os
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TextIO

import torch

from tests.trust.targets import SCRATCH, targets, try_one

#: Inputs to a process: what a library leaks is not put down to the input that finds no memory left.
MOST_INPUTS = 1000

#: What an input may take: seconds of processor time and, on a machine that does other things besides, of waiting;
#: bytes of address space more than the process has at its start, which libraries refuse to exceed; bytes that are still
#: taken afterwards.
MOST_SECONDS = 10
MOST_WAITING_SECONDS = 100
MOST_BYTES = 4 << 30
MOST_KEPT_BYTES = 1 << 27


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
        most_seconds: For all of them.
    """
    outcome = Outcome()
    stop, end = first + count, math.inf if most_seconds is None else time.monotonic() + most_seconds
    while first < stop and time.monotonic() < end:
        last = min(first + MOST_INPUTS, stop)
        lines, code = _in_a_process(kind, first, last, shared, end)
        for number, result, text in lines:
            if result != "begun":
                outcome.counts[result] += 1
            if result == "finding":
                outcome.findings.append((number, text))
        if code == 0:
            first = last
            continue
        begun = [number for number, result, _ in lines if result == "begun"]
        if not begun:
            raise RuntimeError(f"the process of '{kind}' did not begin: {_why(code)}")
        outcome.counts["finding"] += 1
        outcome.findings.append((begun[-1], _why(code)))
        first = begun[-1] + 1
    return outcome


def _in_a_process(
    kind: str, first: int, stop: int, shared: Path | None, end: float
) -> tuple[list[tuple[int, str, str]], int]:
    """The lines that a process wrote about its inputs, and its exit code; of a signal, its negative number."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain about every input
            with os.fdopen(writing, "w", encoding="utf-8") as out:
                _run(kind, range(first, stop), shared, end, out)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as told:
        lines = [tuple(json.loads(line)) for line in told if line.endswith("\n")]
    return lines, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _why(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"more than {MOST_SECONDS} s"
    if code == -signal.SIGALRM:
        return f"it waited for more than {MOST_WAITING_SECONDS} s"
    return f"the process died: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _run(kind: str, numbers: range, shared: Path | None, end: float, out: TextIO) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's own time limit uses it
    target = targets(shared)[kind]()
    size, _ = _memory()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, size + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        for number in numbers:
            if time.monotonic() > end:
                return
            print(json.dumps([number, "begun", ""]), file=out, flush=True)
            before = _memory()[1]
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            signal.alarm(MOST_WAITING_SECONDS)
            try:
                result, text = try_one(target, f"{kind} {number}", Path(scratch) / "in"), ""
            except Exception as problem:  # noqa: BLE001 (all that may come is a finding)
                frames = traceback.extract_tb(problem.__traceback__)
                ours = [frame for frame in frames if "/flaresemi/" in frame.filename] or frames
                where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
                result, text = "finding", f"{type(problem).__name__}: {str(problem)[:300]} at {where}"
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            if (kept := _memory()[1] - before) > MOST_KEPT_BYTES:
                result, text = "finding", f"{kept >> 20} MiB are still taken"
            print(json.dumps([number, result, text]), file=out)


def _memory() -> tuple[int, int]:
    """Bytes of address space and of main memory that this process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages, resident = map(int, file.read().split()[:2])
    return pages * resource.getpagesize(), resident * resource.getpagesize()
