"""Where the time of this very training goes: some of its steps, part by part, and what would make them faster.

A clock and not torch.profiler, which tells one operator from another, but sees no loader process.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from flaresemi.compute.device import device_name, synchronize
from flaresemi.compute.metering import StepClock, no_clock, peak_rss_mib
from flaresemi.machine import available_cores
from flaresemi.training.patches import Batch, ReadBatch
from flaresemi.training.sampling import Samples
from flaresemi.training.trainer import Trainer

#: Steps that are run first and not counted: they start the loader and warm up. Chosen.
WARM_UP_STEPS = 3

#: The parts of a step, in order; `augment` where that is done on the device.
PARTS = ("wait", "transfer", "augment", "forward", "loss", "backward", "optimizer")

#: The loader keeps up when it prepares patches this much faster than the network takes them. Chosen.
_MARGIN = 1.1

#: A share of the step that is worth a word. Chosen.
_NOTABLE = 0.15


@dataclasses.dataclass(frozen=True, slots=True)
class TimedBatch(Batch):
    """A batch that tells what its samples cost.

    Attributes:
        seconds_b4: Per sample: wall and CPU seconds of reading, wall and CPU seconds of augmenting.
        peak_mib_b: The most main memory that the process that made the sample has held.
    """

    seconds_b4: np.ndarray
    peak_mib_b: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class TimedReadBatch(ReadBatch):
    """The same of a batch that is augmented on the device."""

    seconds_b4: np.ndarray
    peak_mib_b: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Cost of some training steps, per step of one process.

    Attributes:
        device: Its name.
        is_gpu: Whether it is one.
        steps: How many were counted.
        batch_size: Patches per step of this process.
        processes: Ranks that train together.
        workers: Loader processes of this one; 0: it prepares the patches itself.
        cores: That this process may use.
        threads: That the network computes with on a CPU.
        augmentation: Strength.
        on_device: Whether patches are augmented there.
        seconds: Of a whole step.
        parts: Seconds of its parts, by name.
        read: Wall and CPU seconds of reading one sample.
        augment: Wall and CPU seconds of augmenting one sample.
        peak_mib: Main memory of this process, at most.
        worker_peak_mib: Of a loader process; None without one.
        gpu_peak_mib: GPU memory that torch held, at most; None without a GPU.
        gpu_mib: All of the GPU's memory.
    """

    device: str
    is_gpu: bool
    steps: int
    batch_size: int
    processes: int
    workers: int
    cores: int
    threads: int
    augmentation: str
    on_device: bool = False
    seconds: float
    parts: dict[str, float]
    read: tuple[float, float]
    augment: tuple[float, float]
    peak_mib: float
    worker_peak_mib: float | None
    gpu_peak_mib: float | None
    gpu_mib: float | None

    @property
    def patches_per_second(self) -> float:
        """Of all processes together."""
        return self.batch_size * self.processes / self.seconds

    @property
    def network_share(self) -> float:
        """Share of the step that is forward and backward."""
        return (self.parts["forward"] + self.parts["backward"]) / self.seconds

    @property
    def loader_rate(self) -> float:
        """Patches per second that the loader of this process can prepare."""
        return max(self.workers, 1) / max(self.read[0] + self.augment[0], 1e-9)

    @property
    def computing_rate(self) -> float:
        """Patches per second that this process could take if it never waited for one."""
        return self.batch_size / max(self.seconds - self.parts["wait"], 1e-9)

    @property
    def verdict(self) -> str:
        """One sentence: what limits, and which option to change."""
        if self.workers == 0:
            if (share := self.parts["wait"] / self.seconds) < _NOTABLE:
                return self._computing_verdict()
            return (
                f"the loader limits: patches are prepared between the steps, {share:.0%} of the time; "
                "--loader-workers 1 prepares them meanwhile"
            )
        if self.loader_rate >= self.computing_rate * _MARGIN:
            return self._computing_verdict()
        return (
            f"the loader limits: it prepares {self.loader_rate:.2g} patches/s, {self.computing_rate:.2g} could be "
            f"taken; {self._more_patches()}"
        )

    def _more_patches(self) -> str:
        wanted = math.ceil(self.workers * _MARGIN * self.computing_rate / self.loader_rate)
        # A core per process is left to the training itself.
        if (possible := min(wanted, max(self.cores - self.processes, 1))) > self.workers:
            return f"try --loader-workers {possible}"
        if self.is_gpu and not self.on_device and self.augment[0] > self.read[0]:
            return f"all {self.cores} cores are at work: --augmentation-device device augments on the GPU"
        if self.read[0] > self.augment[0]:
            return "reading takes most of it: put the workspace on a faster disk"
        if self.augmentation != "none":
            weaker = "standard" if self.augmentation == "strong" else "none"
            return (
                f"augmenting takes most of it, all {self.cores} cores are at work: --augmentation {weaker} costs less"
            )
        return f"all {self.cores} cores are at work: more of them would help"

    def _computing_verdict(self) -> str:
        told = f"the network limits, with {self.network_share:.0%} of the step"
        if (rest := (self.parts["optimizer"] + self.parts["transfer"]) / self.seconds) > _NOTABLE:
            return (
                f"the network limits, but optimizer and transfer take {rest:.0%} of the step; "
                f"--batch-size {2 * self.batch_size * self.processes} shares them among more patches"
            )
        if (share := self.parts.get("augment", 0.0) / self.seconds) > _NOTABLE:
            return f"{told}; augmenting takes {share:.0%}: --augmentation-device cpu leaves it to loader processes"
        if not self.is_gpu and self.threads < self.cores:
            return f"{told}; torch computes with {self.threads} thread(s) on {self.cores} cores: set OMP_NUM_THREADS"
        if self.gpu_peak_mib is not None and self.gpu_mib is not None and self.gpu_peak_mib < self.gpu_mib / 3:
            return (
                f"{told}, and only {self.gpu_peak_mib / self.gpu_mib:.0%} of the GPU's memory is used; "
                f"--batch-size {2 * self.batch_size * self.processes} may use the GPU better"
            )
        hint = "try --compile" if self.is_gpu else "a GPU, more cores or a smaller --preset of the plans would help"
        return f"{told}; {hint}"

    def table(self) -> str:
        """The profile as text for a terminal."""
        cores = f"{self.threads} thread(s) of torch on {self.cores} core(s)"
        lines = [
            f"{self.steps} steps of {self.batch_size} patch(es) on {self.device}; {cores}, "
            f"{self.workers} loader process(es)" + (f", {self.processes} ranks" if self.processes > 1 else ""),
            "",
            f"{'a sample, in the loader':<26}{'wall ms':>10}{'CPU ms':>10}",
        ]
        lines += [
            f"  {name:<24}{1000 * wall:>10.1f}{1000 * cpu:>10.1f}"
            for name, (wall, cpu) in (("read", self.read), ("augment", self.augment))
        ]
        lines += ["", f"{'a step, in the training':<26}{'wall ms':>10}{'share':>10}"]
        rows = {"waiting for data" if part == "wait" else part: taken for part, taken in self.parts.items()}
        rows |= {"rest": self.seconds - sum(self.parts.values()), "whole step": self.seconds}
        lines += [f"  {name:<24}{1000 * taken:>10.1f}{taken / self.seconds:>10.1%}" for name, taken in rows.items()]
        lines += ["", f"{self.patches_per_second:.3g} patches/s; network (forward, backward): {self.network_share:.0%}"]
        memory = f"peak memory: {self.peak_mib:.0f} MiB"
        if self.worker_peak_mib is not None:
            memory += f", a loader process {self.worker_peak_mib:.0f} MiB"
        if self.gpu_peak_mib is not None:
            memory += f", GPU {self.gpu_peak_mib:.0f} of {self.gpu_mib:.0f} MiB"
        return "\n".join([*lines, memory, self.verdict])


def profile(trainer: Trainer, steps: int) -> Profile:
    """Runs some steps of a training that has not begun, with a clock in every part; nothing is written.

    On a GPU every part waits for its own computation, so that a step takes a little longer here than in the training.

    Args:
        trainer: Of any kind; it is as it was afterwards.
        steps: How many are counted, after a few that warm up.
    """
    device, sampler = trainer.device, trainer.sampler
    clock = StepClock(settle=functools.partial(synchronize, device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.clock, trainer.sampler = clock, _TimedSampler(sampler)  # type: ignore[assignment]  # samples all the same
    batches: list[TimedBatch | TimedReadBatch] = []
    seconds = []
    for batch, taken in trainer.rehearse(WARM_UP_STEPS + steps):
        batches.append(batch)  # type: ignore[arg-type] # its sampler times it
        seconds.append(taken)
        if len(batches) == WARM_UP_STEPS:
            clock.seconds.clear()
    trainer.clock, trainer.sampler = no_clock, sampler
    samples = np.concatenate([batch.seconds_b4 for batch in batches]).mean(axis=0)
    worker_peak = max(float(batch.peak_mib_b.max()) for batch in batches)
    is_gpu = device.type == "cuda"
    return Profile(
        device=device_name(device),
        is_gpu=is_gpu,
        steps=steps,
        batch_size=trainer.samples_per_step,
        processes=trainer.ranks.world_size,
        workers=trainer.loader_workers,
        cores=available_cores(),
        threads=torch.get_num_threads(),
        augmentation=trainer.config.augmentation,
        on_device=trainer.augments_on_device,
        seconds=sum(seconds[WARM_UP_STEPS:]) / steps,
        parts={part: clock.seconds[part] / steps for part in PARTS if part in clock.seconds},
        read=(samples[0], samples[1]),
        augment=(samples[2], samples[3]),
        peak_mib=peak_rss_mib(),
        worker_peak_mib=worker_peak if trainer.loader_workers else None,
        gpu_peak_mib=torch.cuda.max_memory_reserved(device) / 2**20 if is_gpu else None,
        gpu_mib=torch.cuda.mem_get_info(device)[1] / 2**20 if is_gpu else None,
    )


class _TimedSampler(Dataset):
    """Draws the samples of another sampler and tells what they cost."""

    def __init__(self, sampler: Samples) -> None:
        self.sampler = sampler

    def __getitem__(self, address: tuple[int, int]) -> TimedBatch | TimedReadBatch:
        wall, cpu = StepClock(), StepClock(time.thread_time)

        @contextlib.contextmanager
        def clock(step: str) -> Iterator[None]:
            with wall(step), cpu(step):
                yield

        self.sampler.clock = clock
        batch = self.sampler[address]
        self.sampler.clock = no_clock
        cost = [seconds.get(step, 0.0) for step in ("read", "augment") for seconds in (wall.seconds, cpu.seconds)]
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        kind = TimedReadBatch if isinstance(batch, ReadBatch) else TimedBatch
        return kind(**fields, seconds_b4=np.array([cost]), peak_mib_b=np.array([peak_rss_mib()]))
