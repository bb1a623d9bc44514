"""Ranks of a torchrun launch, or the one process that there is."""

import contextlib
import dataclasses
import datetime
import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flaresemi.errors import ConfigError, FlaresemiError, LostError, ToldError

#: Environment variable: when the process that waits for this one began, so that its time limit is theirs, however often
#: they start.
LAUNCHED = "FLARESEMI_LAUNCHED"

#: What gloo and NCCL say when another process has gone, where torch has no class for it.
_LOSSES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport", "NCCL error")

#: So long processes of a launch wait for each other at most, but at barriers.
LIMIT = datetime.timedelta(minutes=30)

#: While one process works alone, the others wait; that one of them has died shows at once all the same.
PATIENCE = datetime.timedelta(days=365)

#: In the store of a start: that somebody tells of its failure. The first process has so long to be the one.
_SPOKEN = "flaresemi/spoken"
_SPEAK_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Ranks:
    """Who we are among the processes of a run.

    Attributes:
        rank: Number of this process, 0 to world_size - 1.
        world_size: Number of processes.
        local_rank: Number of this process on its node, which is also its GPU.
        restarts: How often torchrun has started the processes of this node again after one of them died.
        patient: A group of all of them without the time limit of the others; None: there is none.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0
    patient: dist.ProcessGroup | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and speaks."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this process, where a launch computes on devices of that kind: of several GPUs, its own."""
        if self.world_size == 1 or chosen.type != "cuda":
            return chosen
        return torch.device("cuda", self.local_rank)

    def barrier(self) -> None:
        """Waits for all ranks, however long one of them works alone."""
        if self.world_size > 1:
            dist.barrier(self.patient)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the ranks, on every rank."""
        if self.world_size > 1:
            value = value.detach().clone()  # all_reduce writes into its argument
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def any(self, flag: bool) -> bool:
        """True on every rank as soon as the flag is set on one; no GPU is waited for."""
        if self.world_size == 1:
            return flag
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def of_main(self, number: int) -> int:
        """The number that the main process has, on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number)
        dist.broadcast(shared, src=0)
        return int(shared.item())

    def share_gradients(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network, whose gradients will be the means over the ranks."""
        if self.world_size == 1:
            return network
        # Channels-last gradients of kernels of one voxel lie in memory as the weights do, but their strides have other
        # numbers in the axes of length one, which DDP warns of.
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: gradient.flatten().view_as(gradient))
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """Who we are by torchrun's environment variables; None where torchrun did not start this process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in environment for name in names):
        return None
    rank, world_size, local_rank = (int(environment[name]) for name in names)
    return Ranks(rank, world_size, local_rank, restarts=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")))


@contextlib.contextmanager
def join_ranks(device_type: str) -> Iterator[Ranks]:
    """Joins the process group that torchrun's environment variables describe; alone, does nothing.

    torchrun (RANK, WORLD_SIZE, LOCAL_RANK) is the one launcher; SLURM and --gpus start it.

    Raises:
        ConfigError: there is no GPU for this process.
        LostError: another process has died.
        ToldError: what ends this process is told by another one.
    """
    ranks = launched_ranks() or Ranks()
    if ranks.world_size == 1:
        yield ranks
        return
    if device_type == "cuda":
        _take_gpu(ranks)
    # NCCL for tensors on GPUs; flags and barriers go by gloo, which waits for no GPU and notices who has gone.
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://", timeout=LIMIT))
    store = unused_part(store, rank, world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=LIMIT)
    may_leave = device_type != "cuda"  # NCCL waits for what is underway, for ever where another process has failed
    try:
        yield dataclasses.replace(ranks, patient=dist.new_group(backend="gloo", timeout=PATIENCE))
        dist.barrier()  # a rank that left first would break the connections of those still at work
        may_leave = True
    except FlaresemiError as problem:
        raise _once(problem, store, ranks, may_leave=may_leave) from None
    except RuntimeError as problem:
        if not _is_loss(problem):
            raise
        raise _once(_lost(store, ranks), store, ranks, may_leave=may_leave) from None
    finally:
        if may_leave and dist.is_initialized():
            dist.destroy_process_group()


def _take_gpu(ranks: Ranks) -> None:
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise ConfigError(
            f"process {ranks.local_rank} of this machine has no GPU of its own: {count} are visible",
            fix=f"start at most {count} processes on it (--gpus, torchrun --nproc-per-node), or --device cpu",
        )
    torch.cuda.set_device(ranks.local_rank)


def _is_loss(problem: RuntimeError) -> bool:
    """Whether an error of torch says that another process of the launch has gone."""
    said = str(problem)
    return isinstance(problem, dist.DistError) or any(phrase in said for phrase in _LOSSES)


def _lost(store: dist.Store, ranks: Ranks) -> FlaresemiError:
    """The message of a process that lost another: the reason, where that one left it."""
    for rank in range(ranks.world_size):
        if store.check([_reason(rank)]):
            return FlaresemiError(f"process {rank} of this launch: {store.get(_reason(rank)).decode()}")
    if LAUNCHED in os.environ:
        return ToldError("the process that waits knows which one has died, and how")
    return LostError(
        "another process of this launch has died, and this one ended with it",
        fix="the same command goes on; what was finished is kept",
    )


def _once(problem: FlaresemiError, store: dist.Store, ranks: Ranks, *, may_leave: bool) -> FlaresemiError:
    """The error, as one that is told already where another process of the launch tells it: one of them speaks.

    Args:
        may_leave: The process group can be left at once.
    """
    with contextlib.suppress(RuntimeError):  # the store's host is gone
        if not ranks.is_main:
            if not isinstance(problem, LostError | ToldError):
                store.set(_reason(ranks.rank), str(problem))
            if may_leave:
                dist.destroy_process_group()  # by which the first process sees that it has to speak
            until = time.monotonic() + _SPEAK_SECONDS
            while time.monotonic() < until and not store.check([_SPOKEN]):
                time.sleep(0.05)
        if store.add(_SPOKEN, 1) > 1:
            return ToldError(problem.what)
    return problem


def _reason(rank: int) -> str:
    return f"flaresemi/failed/{rank}"


def unused_part(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A part of a store that only the ranks of this start write to.

    torchrun keeps one store for all starts of a run (torch 2.13). A rank that is started again must not find the
    address of a peer that has died, or it waits for that peer until the timeout. How often a node was started is no
    name for a start: the nodes count for themselves. So each rank leaves a name of its own that nobody knew before, and
    all wait until every one of them has seen the same names.
    """
    store.set(f"flaresemi/name/{rank}", uuid.uuid4().hex)
    while True:
        names = b" ".join(store.get(f"flaresemi/name/{other}") for other in range(world_size))
        store.set(f"flaresemi/seen/{rank}", names.decode())
        if all(store.get(f"flaresemi/seen/{other}") == names for other in range(world_size)):
            return dist.PrefixStore(f"flaresemi/{hashlib.sha256(names).hexdigest()}", store)
        time.sleep(0.05)
