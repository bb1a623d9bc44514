"""Ranks: who they are, and that those of one start find each other among what former starts have left."""

import datetime
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from flaresemi.compute.distributed import Ranks, join_ranks, launched_ranks, unused_part
from flaresemi.errors import ConfigError


def test_ranks_by_the_variables_of_torchrun() -> None:
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert launched_ranks({}) is None
    assert launched_ranks({"RANK": "0"}) is None
    assert launched_ranks(variables) == Ranks(3, 4, 1)
    assert launched_ranks(variables | {"TORCHELASTIC_RESTART_COUNT": "2"}) == Ranks(3, 4, 1, restarts=2)


def test_a_process_of_a_launch_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, second = torch.device("cpu"), torch.device("cuda", 1)
    assert Ranks(3, 4, 1).device(torch.device("cuda", 0)) == second, "whatever number the user has named"
    assert Ranks(3, 4, 1).device(cpu) == cpu
    assert Ranks().device(second) == second
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="has no GPU of its own: 1 are visible"), join_ranks("cuda"):
        pass


def test_a_start_does_not_read_what_a_former_one_has_written() -> None:
    store, count = dist.HashStore(), 3
    store.set_timeout(datetime.timedelta(seconds=10))
    first_is_late = threading.Event()

    def start(rank: int, late: bool) -> bytes:
        if late:
            first_is_late.wait()
        part = unused_part(store, rank, count)
        stale = part.check([f"address of {rank}"])
        part.set(f"address of {rank}", f"{rank} at {time.monotonic_ns()}")
        return b"stale" if stale else b", ".join(part.get(f"address of {other}") for other in range(count))

    with ThreadPoolExecutor(count) as pool:
        for late in range(count):  # the one that is late finds the names of the others, and they find its former name
            first_is_late.clear()
            begun = time.monotonic_ns()
            found = [pool.submit(start, rank, rank == late) for rank in range(count)]
            time.sleep(0.2)
            assert not any(each.done() for each in found)
            first_is_late.set()
            answers = {each.result(timeout=30) for each in found}
            assert len(answers) == 1
            times = [int(each.split()[-1]) for each in answers.pop().split(b", ")]
            assert all(moment > begun for moment in times)
