"""Several processes for one command: ranks that torchrun starts, or helpers that share a list with this process."""

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flaresemi.cli.common import EXIT_STOPPED, EXIT_USER_ERROR, StoppedEarly
from flaresemi.cli.numbers import count, number
from flaresemi.compute.crew import Crew
from flaresemi.compute.distributed import LAUNCHED, Ranks
from flaresemi.errors import ConfigError, FlaresemiError, ToldError
from flaresemi.ranges import Few

logger = logging.getLogger(__name__)

#: For torchrun: signals to the process that waits, which its training processes get as well, and how many seconds it
#: then lets them save. Some versions of torch do not have them yet: then SIGUSR1 ends it, and 30 s must do.
_STOPPING = ("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout=120")


def launch_ranks(
    module: str, words: Sequence[str], *, gpus: int, max_restarts: int, go_on: str, began: float | None = None
) -> None:
    """Starts one process per GPU, as torchrun does, and waits for them.

    Args:
        module: The command, as python -m takes it.
        words: Its options. Those that decide what is started here stay among them: the processes that are started name
            them in the command that comes next.
        gpus: How many processes.
        max_restarts: How often all of them are started again after one has died.
        go_on: What goes on after a stop, for messages.
        began: When the work of which this is a part began, as `time.monotonic` has it; None: now.

    Raises:
        StoppedEarly: a signal or the time limit stopped them.
        FlaresemiError: they failed.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    stopped = StoppedEarly(f"the processes of this launch were stopped; {go_on}")
    if launched_at() is not None:
        threading.Thread(target=_end_with, args=(orphaned(),), daemon=True).start()
    os.environ[LAUNCHED] = str(time.monotonic() if began is None else began)
    known = torchrun.get_args_parser().format_help()
    try:
        torchrun.main(
            [
                "--standalone",
                f"--nproc-per-node={gpus}",
                f"--max-restarts={max_restarts}",
                *(option for option in _STOPPING if option.partition("=")[0] in known),
                "-m",
                module,
                *words,
            ]
        )
    except SignalException as received:
        if received.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise stopped from None
    except ChildFailedError as problem:
        codes = {rank: failure.exitcode for rank, failure in problem.failures.items()}
        if set(codes.values()) == {EXIT_STOPPED}:
            raise stopped from None
        raise _failure(codes, go_on) from None
    finally:
        del os.environ[LAUNCHED]


def add_launch_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--gpus` and `--max-restarts`, for `launch_ranks`."""
    parser.add_argument("--gpus", type=count, default=1, metavar="N", help=what)
    parser.add_argument(
        "--max-restarts",
        type=number(Few),
        default=0,
        metavar="K",
        help="go on automatically, up to K times, after a process has died [0]",
    )


def lead_or_follow(crew: Crew, own: object, work: Callable[[], None]) -> None:
    """Runs the work in the first process of a launch; the others do what it calls them for.

    Args:
        crew: Of the launch.
        own: What this process has of its own, for what they do together.
        work: Of the first one; it calls the others by the crew.

    Raises:
        StoppedEarly: the work was asked to stop.
        ToldError: in the others: it failed.
    """
    if not crew.ranks.is_main:
        end = crew.follow(own)
        if end == "stopped":
            raise StoppedEarly("stopped with the first process of the launch")
        if end == "failed":
            raise ToldError("the first process of the launch has failed")
        return
    try:
        work()
    except StoppedEarly:
        crew.dismiss("stopped")
        raise
    except FlaresemiError:
        crew.dismiss("failed")
        raise
    crew.dismiss("done")


def launched_at() -> float | None:
    """When the work of the process that waits for this one began, as `time.monotonic` has it; None where none does."""
    launched = os.environ.get(LAUNCHED)
    return float(launched) if launched else None


def _end_with(is_alone: Callable[[], bool]) -> None:
    """Ends this process, and so the ranks that it waits for, when the one that waits for it has gone."""
    while not is_alone():
        time.sleep(1.0)
    signal.raise_signal(signal.SIGTERM)


def _failure(codes: Mapping[int, int], go_on: str) -> FlaresemiError:
    """One message about the ranks that failed: those that were killed first, since the others fail for want of them."""
    killed = {rank: code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    if not killed:
        others = [code for code in codes.values() if code not in (EXIT_USER_ERROR, -signal.SIGTERM)]
        if not others and EXIT_USER_ERROR in codes.values():
            return ToldError("one of them has told why")
        code = next(iter(others or codes.values()))
        return ConfigError(f"the processes of this launch ended with code {code}; the reason stands above")
    rank, code = next(iter(killed.items()))
    return FlaresemiError(f"process {rank} of this launch {how_ended(code)}, and the others ended with it", fix=go_on)


def how_ended(code: int) -> str:
    """What an exit code says of how a process ended."""
    if code >= 0:
        return f"ended with code {code}; the reason stands above"
    name = signal.Signals(-code).name
    return f"was killed ({name})" + (", most likely for lack of memory" if name == "SIGKILL" else "")


def without_options(words: Sequence[str], *flags: str) -> list[str]:
    """The words of a command without these options, which have a value each."""
    named = "|".join(re.escape(flag) for flag in flags)
    kept = re.sub(rf"(^|\0)(?:{named})[=\0][^\0]*", "", "\0".join(words)).strip("\0")
    return kept.split("\0") if kept else []


@contextlib.contextmanager
def helpers(module: str, words: Sequence[str], ranks: Ranks) -> Iterator[list[subprocess.Popen]]:
    """Starts the other processes of a launch of which this one is the first, and ends them with the block.

    They know who they are by the variables of torchrun, and need nobody else: if one dies, the others do its part, and
    this one says so.

    Args:
        module: The command, as python -m takes it.
        words: Its options.
        ranks: Who this process is; alone: nothing is started.
    """
    command, started = [sys.executable, "-m", module, *words], []
    try:
        for rank in range(1, ranks.world_size):
            place = {"RANK": str(rank), "WORLD_SIZE": str(ranks.world_size), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen(command, env=os.environ | place))
        yield started
        for rank, process in enumerate(started, start=1):
            if code := process.poll():
                logger.warning("process %d of this launch %s; the others did what it left", rank, how_ended(code))
    finally:
        for process in started:
            process.terminate()
        wait_for(started)


def wait_for(processes: Iterable[subprocess.Popen]) -> None:
    """Waits until processes have ended."""
    for process in processes:
        process.wait()


def orphaned() -> Callable[[], bool]:
    """Says whether the process that started this one has gone since now."""
    parent = os.getppid()
    return lambda: os.getppid() != parent
