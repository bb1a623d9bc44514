"""Commands in processes of their own that die at a chosen moment, and what they left behind.

The processes are forked from one that has imported everything: a start takes no time.
"""

import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from flaresemi.io.images import read_label_map
from flaresemi.networks.checkpoint import load_checkpoint

#: Where these stand, times and places are written, which differ from start to start.
TIMES = {"seconds", "patches_per_second", "started", "continued", "git_revision", "command", "mtime_ns", "init_from"}

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [f"flaresemi.cli.{name}" for name in ("plan_and_preprocess", "train", "predict", "semi_round")]
    + ["torch.utils.tensorboard", "torch._dynamo", "matplotlib.figure", "surface_distance"]
)


@dataclasses.dataclass(frozen=True)
class End:
    """How a command ended.

    Attributes:
        code: Its exit code; negative: the signal that killed it.
        said: All that it wrote.
        cpu_seconds: Processor time that it used, if it ended by itself.
    """

    code: int
    said: str
    cpu_seconds: float


def run_command(
    words: Sequence[str | Path], log: Path, *, kill_after: float | None = None, kill_worker_after: float | None = None
) -> End:
    """Runs a command.

    Args:
        words: The name of its module in `flaresemi.cli`, and its options.
        log: File for what it says; written anew.
        kill_after: Processor time after which it kills itself with SIGKILL: the moment depends on what is computed,
            not on what else the machine does.
        kill_worker_after: Seconds after which one of the processes that it has started by then gets SIGKILL, counted
            from the first of them.
    """
    log.write_bytes(b"")
    process = _CONTEXT.Process(
        target=_run, args=([str(word) for word in words], str(log), kill_after, kill_worker_after)
    )
    process.start()
    process.join()
    said = log.read_text(encoding="utf-8", errors="replace")
    used = log.with_suffix(".cpu")
    seconds = float(used.read_text(encoding="utf-8")) if used.exists() else 0.0
    used.unlink(missing_ok=True)
    if process.exitcode is None:
        raise RuntimeError("a process that was waited for has no exit code")
    return End(process.exitcode, said, seconds)


def _run(words: list[str], log: str, kill_after: float | None, kill_worker_after: float | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    torch.set_num_threads(1)
    if kill_after is not None:
        threading.Thread(target=_die, args=(kill_after,), daemon=True).start()
    if kill_worker_after is not None:
        threading.Thread(target=_kill_worker, args=(kill_worker_after,), daemon=True).start()
    code = importlib.import_module(f"flaresemi.cli.{words[0]}").main(words[1:])
    Path(log).with_suffix(".cpu").write_text(str(time.process_time()), encoding="utf-8")
    sys.exit(code)


def _die(after: float) -> None:
    while time.process_time() < after:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_worker(after: float) -> None:
    while not _children():
        time.sleep(0.001)
    time.sleep(after)
    for child in _children()[-1:]:
        os.kill(child, signal.SIGKILL)


def _children() -> list[int]:
    """Processes that this one started, but for the one that looks after shared memory."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for path in found for pid in path.read_text(encoding="ascii").split()]
    return [pid for pid in pids if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def differences(one: Path, other: Path) -> list[str]:
    """The files of two folders that are not the same, times and pictures aside."""
    names = [
        {
            name
            for path in folder.rglob("*")
            if path.is_file() and not ("/logs/" in (name := str(path.relative_to(folder))) or name.endswith(_PICTURES))
        }
        for folder in (one, other)
    ]
    found = [f"only in one: {name}" for name in sorted(names[0] ^ names[1])]
    return found + [name for name in sorted(names[0] & names[1]) if not _same(one / name, other / name)]


_PICTURES = ("curves.png", ".html")


def _same(one: Path, other: Path) -> bool:
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix == ".pt":
        ours, theirs = load_checkpoint(one), load_checkpoint(other)
        return (ours.weights_hash, ours.iteration) == (theirs.weights_hash, theirs.iteration)
    if one.name.endswith(".nii.gz"):
        return np.array_equal(read_label_map(one).array_zyx, read_label_map(other).array_zyx)
    if one.suffix in (".json", ".jsonl"):
        return _timeless(one) == _timeless(other)
    return False


def _timeless(path: Path) -> list[object]:
    text = path.read_text(encoding="utf-8")

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in TIMES}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return [strip(json.loads(line)) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[bool]:
    """A filesystem of so many KiB on `folder`; False where mounting is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mounted(folder, ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]) as done:
        yield done


@contextlib.contextmanager
def read_only(folder: Path, place: Path) -> Iterator[bool]:
    """The same folder at `place`, where nothing can be written, also by root; False where that is not permitted."""
    place.mkdir(parents=True, exist_ok=True)
    with _mounted(place, ["--bind", "-o", "ro", str(folder), str(place)]) as done:
        yield done


@contextlib.contextmanager
def _mounted(place: Path, words: list[str]) -> Iterator[bool]:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", str(place)], check=True)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything in a folder."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}
