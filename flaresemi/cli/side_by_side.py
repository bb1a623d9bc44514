"""Several launches side by side: each has devices and cores of its own, and none ends with another."""

import contextlib
import dataclasses
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from tqdm import tqdm

from flaresemi.cli.common import EXIT_OK, EXIT_STOPPED
from flaresemi.cli.launching import how_ended
from flaresemi.compute.distributed import LAUNCHED
from flaresemi.errors import FlaresemiError, visible
from flaresemi.portability import core_numbers, on_cores

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
#: For the rest of what a process has said, when it has ended: those that it has left behind may keep the pipe open.
_DRAIN_SECONDS = 5.0

#: What a message of an error begins with, and what its further lines do.
_ERROR, _MORE = "error: ", "       "


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What one launch at a time has of the machine.

    Attributes:
        environment: Variables that name its GPUs.
        cores: Numbers of its cores; empty: all.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] = frozenset()


@dataclasses.dataclass(slots=True)
class Ending:
    """How a launch has ended.

    Attributes:
        code: Its exit code; None where it was not begun, since all were asked to stop.
        told: The message of its error, without the word; empty where it gave none.
    """

    code: int | None = None
    told: str = ""


def places(count: int, gpus: int, device: str) -> list[Place]:
    """Divides the GPUs and the cores that this process sees.

    Args:
        count: How many places.
        gpus: Of each. Where there are fewer in all, places share them.
        device: What the user calls the device; one with a number is that one for all.
    """
    names: Sequence[str] = ()
    if device in ("auto", "cuda") and torch.cuda.is_available():
        visible_ones = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible_ones.split(",") if visible_ones else [str(each) for each in range(torch.cuda.device_count())]
    cores = core_numbers()
    share = len(cores) // count
    made = []
    for number in range(count):
        mine = [names[each % len(names)] for each in range(number * gpus, (number + 1) * gpus)] if names else []
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(mine))} if mine else {}
        made.append(Place(environment, frozenset(cores[number * share : (number + 1) * share])))
    return made


def side_by_side(
    commands: Mapping[str, Sequence[str]],
    at: Sequence[Place],
    *,
    began: float,
    stop_requested: Callable[[], bool],
) -> dict[str, Ending]:
    """Runs commands, as many at a time as there are places; one that fails leaves the others going.

    What they say is said here, each line with the name of its command before it. Messages of errors are kept for the
    end.

    Args:
        commands: The words of each, by a name.
        at: The places.
        began: When this work began, as `time.monotonic` has it: their time limits count from then.
        stop_requested: Polled; True has all of them save and stop, and begins no other.

    Returns:
        How each has ended.
    """
    endings = {name: Ending() for name in commands}
    waiting, free = list(commands), list(at)
    running: dict[str, tuple[subprocess.Popen[str], threading.Thread, Place]] = {}
    is_over = False
    try:
        while running or (waiting and not is_over):
            if not is_over and stop_requested():
                is_over = True
                for process, _, _ in running.values():
                    process.terminate()
            while waiting and free and not is_over:
                name, place = waiting.pop(0), free.pop(0)
                process = _start(commands[name], place, began)
                listener = threading.Thread(target=_pass_on, args=(name, process, endings[name]), daemon=True)
                listener.start()
                running[name] = process, listener, place
            for name, (process, listener, place) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    listener.join(_DRAIN_SECONDS)
                    endings[name].code = process.returncode
                    free.append(place)
            time.sleep(_LOOK_SECONDS)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.wait()
    return endings


def all_done(endings: Mapping[str, Ending], go_on: str) -> bool:
    """Whether all have come to their end; False where they were stopped.

    Args:
        endings: By name.
        go_on: What goes on after a failure, for the message.

    Raises:
        FlaresemiError: some have failed: one message for all of them.
    """
    failed = {name: each for name, each in endings.items() if each.code not in (None, EXIT_OK, EXIT_STOPPED)}
    if failed:
        lines = [f"{name}: {each.told or how_ended(each.code or 0)}" for name, each in failed.items()]
        raise FlaresemiError(
            f"{len(failed)} of {len(endings)} have failed; what the others had to do meanwhile is done or saved",
            where="\n       ".join(lines),
            fix=go_on,
        )
    return all(each.code == EXIT_OK for each in endings.values())


def _start(command: Sequence[str], place: Place, began: float) -> "subprocess.Popen[str]":
    with on_cores(place.cores):
        return subprocess.Popen(
            command,
            env=os.environ | place.environment | {LAUNCHED: str(began)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )


def _pass_on(name: str, process: "subprocess.Popen[str]", ending: Ending) -> None:
    """Says what a process says, and keeps its error."""
    is_error = False
    with process.stdout or contextlib.nullcontext(()) as lines:
        for line in map(str.rstrip, lines):
            if line.startswith(_ERROR):
                ending.told, is_error = line.removeprefix(_ERROR), True
            elif is_error and line.startswith(_MORE):
                ending.told += f"\n{line}"
            else:
                is_error = False
                if line:
                    tqdm.write(visible(f"{name}: {line}"), file=sys.stderr)
