"""Which part of many independent cases a process takes: by hand, as a task of a SLURM array, as a rank of torchrun."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import torch

from flaresemi.compute.device import select_device
from flaresemi.compute.distributed import Ranks, launched_ranks
from flaresemi.errors import ConfigError

_BY_HAND = re.compile(r"(\d+)/(\d+)")
_NUMBERS = "say which part by hand: --shard 0/4 is the first of four"


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """One part of a list that several processes share; they need not know of each other.

    Attributes:
        number: Of this part, from 0.
        count: How many parts there are.
        helps: Whether it goes on with the other parts when its own is done, so that a slow or dead process does not
            hold up the rest. A part that was named by hand is that part and no more.
        local_rank: Number of this process on its machine, which is also its GPU; None where the process has its
            machine to itself.
        within: The part that was named by hand and that this one is a part of; None: of everything.
    """

    number: int = 0
    count: int = 1
    helps: bool = False
    local_rank: int | None = None
    within: "Shard | None" = None

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ConfigError(
                f"there is no shard {self.number} of {self.count}", fix=f"shards are numbered 0 to {self.count - 1}"
            )

    @property
    def speaks(self) -> bool:
        """Whether this is the process of its launch that talks to the user."""
        return self.local_rank is None or self.number == 0

    def device(self, name: str) -> torch.device:
        """The device that a name means here: a rank of torchrun has its GPU, unless the name has a number.

        Where a machine has more ranks than GPUs, they share them evenly.

        Raises:
            ConfigError: the device is unknown or absent.
        """
        device = select_device(name)
        if self.local_rank is None or device.type != "cuda" or ":" in name:
            return device
        return select_device(f"cuda:{self.local_rank % torch.cuda.device_count()}")

    def of(self, names: Sequence[str]) -> list[str]:
        """Every `count`-th name from number `number` on, in sorted order: long and short scans are spread evenly."""
        return sorted(names)[self.number :: self.count]

    def before_others(self, names: Sequence[str]) -> list[str]:
        """Its own part and, if it helps, all other names after it; no more than the part that was named by hand."""
        names = names if self.within is None else self.within.of(names)
        own = self.of(names)
        return own + sorted(set(names).difference(own)) if self.helps else own


def shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """The part that a word names.

    Args:
        text: `0/4`, `slurm` (this task of a job array) or `torchrun` (this rank). The variables that SLURM and torchrun
            set are looked at only when they are asked for: a job array may well divide something else.
        environment: The variables of the process.

    Raises:
        ConfigError: it is none of these, or there is no such launch around the process.
    """
    match = _BY_HAND.fullmatch(text)
    if match is not None:
        return Shard(int(match[1]), int(match[2]))
    if text == "slurm":
        return _slurm_shard(environment)
    if text == "torchrun":
        ranks = launched_ranks(environment)
        if ranks is None:
            raise ConfigError(
                "--shard torchrun: RANK and WORLD_SIZE are not set",
                fix=f"start it with torchrun --no-python flaresemi_semi_round ..., or {_NUMBERS}",
            )
        return Shard(ranks.rank, ranks.world_size, helps=True, local_rank=ranks.local_rank)
    raise ConfigError(f"'{text}' is no shard", fix="write 0/4, 1/4, 2/4 or 3/4 for four of them, slurm or torchrun")


def joint_shard(text: str | None, ranks: Ranks | None) -> Shard:
    """The part of a process of a launch, whose processes share what the launch as a whole takes.

    Args:
        text: The part of the launch, as for `shard`; None: everything.
        ranks: Who this process is in the launch; None where it is alone.

    Raises:
        ConfigError: as for `shard`.
    """
    whole = Shard() if text is None else shard(text)
    if ranks is None or ranks.world_size == 1 or text == "torchrun":
        return whole
    if whole.count == 1 or whole.helps:
        number, count = whole.number * ranks.world_size + ranks.rank, whole.count * ranks.world_size
        return Shard(number, count, helps=True, local_rank=ranks.local_rank)
    return Shard(ranks.rank, ranks.world_size, helps=True, local_rank=ranks.local_rank, within=whole)


def _slurm_shard(environment: Mapping[str, str]) -> Shard:
    """The place of this task among those of its array: `--array=1-4` and `--array=0-30:10` both make four shards."""
    try:
        task, first, last, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
        )
    except (KeyError, ValueError):
        raise ConfigError(
            "--shard slurm: the SLURM_ARRAY_TASK_ variables are not set",
            fix=f"submit it as a job array (sbatch --array=0-3), or {_NUMBERS}",
        ) from None
    step = max((last - first) // max(count - 1, 1), 1)
    number, between = divmod(task - first, step)
    if between or first + step * (count - 1) != last or not 0 <= number < count:
        raise ConfigError(
            f"--shard slurm: task {task} has no clear place among {count} tasks from {first} to {last}",
            fix=f"submit evenly spaced tasks (sbatch --array=0-3), or {_NUMBERS}",
        )
    return Shard(number, count, helps=True)
