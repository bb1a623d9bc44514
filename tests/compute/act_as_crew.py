"""Three processes of a launch, for test_crew.py: they fork from one, since importing torch takes longest of all."""

import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable

import torch.distributed as dist

from flaresemi.compute import distributed
from flaresemi.compute.crew import Crew
from flaresemi.compute.distributed import Ranks, join_ranks
from flaresemi.errors import DatasetError, FlaresemiError

COUNT = 3
LIMIT_SECONDS = 6.0

#: Of this process.
joined: list[Ranks] = []


def times(own: int, factor: int) -> int:
    return own * factor


def fail_in(own: int, who: int) -> None:
    if own == who:
        raise DatasetError(f"process {own} cannot")


def fail_within_a_step(own: int, who: int) -> None:
    fail_in(own, who)
    dist.barrier()


def die_within_a_step(own: int, who: int) -> None:
    if own == who:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def wait_for_the_first(own: int, seconds: float) -> str:
    if own == 0:
        time.sleep(seconds)
    joined[0].barrier()
    return "met"


def lead(crew: Crew) -> list[object]:
    """What the first process makes of the others."""
    if sys.argv[1] == "waits":
        return crew.together(0, wait_for_the_first, 1.5 * LIMIT_SECONDS, in_step=True)
    found: list[object] = [crew.together(0, times, 3)]
    try:
        crew.together(0, fail_in, 2)
    except DatasetError as problem:
        found.append(problem.what)
    found.append(crew.together(0, times, 2))  # they are all there still
    if sys.argv[1] == "fails":
        crew.together(0, fail_within_a_step, 1, in_step=True)
    if sys.argv[1] == "dies":
        crew.together(0, die_within_a_step, 1, in_step=True)
    if sys.argv[1] == "first dies":
        crew.together(0, die_within_a_step, 0, in_step=True)
    return found


def act(rank: int, tell: Callable[[object], None]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        with join_ranks("cpu") as ranks:
            joined.append(ranks)
            crew = Crew(ranks)
            if rank:
                tell(crew.follow(rank))
            else:
                tell(lead(crew))
                crew.dismiss("done")
    except FlaresemiError as problem:
        tell([type(problem).__name__, problem.what])


if __name__ == "__main__":
    if sys.argv[1] == "waits":
        distributed.LIMIT = datetime.timedelta(seconds=LIMIT_SECONDS)
    os.environ |= {"WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children = {}
    for rank in range(COUNT):
        port_of, port_for = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ["MASTER_PORT"] = os.read(port_of, 8).decode()
            act(rank, lambda told, rank=rank: os.write(1, f"{json.dumps([rank, told])}\n".encode()))
            os._exit(0)
        children[child] = port_for
    # As torchrun's agent does, whose store outlives its processes. Its thread may hold locks of the C library that a
    # process forked meanwhile would wait for without end.
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=60)
    )
    for port_for in children.values():
        os.write(port_for, str(store.port).encode())
    for child in children:
        os.waitpid(child, 0)
