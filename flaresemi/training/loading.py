"""Batches from other processes, and what went wrong there said clearly."""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch.utils.data import Dataset

from flaresemi.errors import FlaresemiError, shown
from flaresemi.machine import available_cores
from flaresemi.portability import signals_blocked
from flaresemi.system_errors import lacks_memory
from flaresemi.training.patches import Batch, ReadBatch
from flaresemi.training.sampling import AddressSampler, build_loader

#: What torch says when a loader process died.
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) (?P<how>[^.]*)")


def usual_workers(device: torch.device, processes: int) -> int:
    """How many processes prepare patches for one of a training's processes: a GPU gets all cores, but at most 12."""
    return 1 if device.type == "cpu" else max(1, min(available_cores() // processes - 1, 12))


def load_batches(
    sampler: Dataset, addresses: AddressSampler, workers: int, *, pin: bool = False
) -> Iterator[Batch | ReadBatch]:
    """Batches in order, prepared by `workers` processes (0: in this one), in pinned memory where a GPU wants them.

    Raises:
        FlaresemiError: what the sampler raised, wherever it ran.
    """
    with signals_blocked():  # their parent saves and leaves, and ends them
        batches = iter(build_loader(sampler, addresses, workers, pin=pin))
    for batch in batches:
        if isinstance(batch, FlaresemiError):
            raise batch
        yield batch


@contextlib.contextmanager
def failures_told() -> Iterator[None]:
    """Makes clear messages of what is raised, at any line of this process, when a loader died or memory ran out.

    Raises:
        FlaresemiError: a loader process died; it names the process, how it died and what to do. Or memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if lacks_memory(problem):
            raise _memory_ran_out(problem) from None
        death = _DEATH.search(str(problem)) or _DEATH.search(str(problem.__context__))  # amid writing, say
        if death is None:
            raise
        if "Bus error" in death["how"]:  # a mapped file became shorter, or its disk cannot be read
            fix = "a prepared case can no longer be read: run flaresemi_plan_and_preprocess again, then --continue"
        else:
            fix = "most likely memory ran out: --continue with fewer processes goes on (--loader-workers 0: none)"
        raise FlaresemiError(
            f"a process that prepares patches died: process {death['pids']} {death['how'].strip()}", fix=fix
        ) from None


def _memory_ran_out(problem: Exception) -> FlaresemiError:
    said = (str(problem).strip() or type(problem).__name__).splitlines()[0]
    return FlaresemiError(
        f"memory ran out: {shown(said, 200)}",
        fix="plan for less (flaresemi_plan_and_preprocess --replan --gpu-memory-gib 6), or a smaller batch_size or "
        "patch_zyx in plans.json; close other programs",
    )
