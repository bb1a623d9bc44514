"""The cost of a piece of work: time, processor, main memory and GPU memory, sampled while it runs."""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import torch

from flaresemi.machine import available_cores, counters
from flaresemi.portability import peak_bytes

#: FLARE samples every 0.1 s.
INTERVAL_SECONDS = 0.1

#: FLARE forgives GPU memory up to this much.
FREE_GPU_MIB = 2048


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a running piece of work.

    Attributes:
        seconds: Since its start.
        cpu_percent: Processor time of this process and its finished children since the sample before, as a share of
            all cores that the process may use.
        rss_mib: Main memory that the process holds.
        gpu_mib: Memory in use on the GPU, by whomever; None without a GPU.
    """

    seconds: float
    cpu_percent: float
    rss_mib: float
    gpu_mib: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a piece of work.

    Attributes:
        seconds: Running time.
        cpu_area: Area under the curve of processor use over time, percent · s.
        gpu_area: Area under the curve of GPU memory over time, above 2048 MiB, MiB · s; None without a GPU.
        peak_rss_mib: The largest sample.
        peak_gpu_mib: The largest sample; None without a GPU.
        samples: Every 0.1 s, and one at the end.

    Source: FLARE's efficiency metrics. There, processor use is that of the whole machine, in a container that has it to
    itself; here it is this process's, which other work on the machine does not change.
    """

    seconds: float
    cpu_area: float
    gpu_area: float | None
    peak_rss_mib: float
    peak_gpu_mib: float | None
    samples: tuple[Sample, ...]


class Meter:
    """Samples the process from a thread of its own, as long as its block runs.

    Args:
        device: Its memory is watched when it is a GPU.

    Attributes:
        cost: After the block.
    """

    cost: Cost

    def __init__(self, device: torch.device) -> None:
        self.device = device
        import psutil  # of 25 ms, which not every command needs

        self._process = psutil.Process()
        self._stop = threading.Event()
        self._samples: list[Sample] = []
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._started = self._looked = time.perf_counter()
        self._cpu = _cpu_seconds()
        self._cores = available_cores()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.cost = summed_up(tuple(self._samples))

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        now, cpu = time.perf_counter(), _cpu_seconds()
        share = (cpu - self._cpu) / max(now - self._looked, 1e-6) / self._cores
        self._looked, self._cpu = now, cpu
        gpu = None
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            gpu = (total - free) / 2**20
        rss = self._process.memory_info().rss / 2**20
        self._samples.append(Sample(seconds=now - self._started, cpu_percent=100 * share, rss_mib=rss, gpu_mib=gpu))


class StepClock:
    """Sums up the seconds that named steps take.

    Args:
        now: Tells the time.
        settle: Called before each look at the time; for a GPU, what waits until it has computed all that it was given.

    Attributes:
        seconds: By step, in the order in which they came first.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, settle: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self._now = now
        self._settle = settle

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        self._settle()
        start = self._now()
        try:
            yield
        finally:
            self._settle()
            self.seconds[step] = self.seconds.get(step, 0.0) + self._now() - start


#: A process that did not even look at the clock for so long was stopped, or slept with its machine. Chosen: far above
#: what a busy machine lets a thread wait.
_ASLEEP_SECONDS = 10.0


class RunningTime:
    """Seconds that this process has been running, without the time for which it was stopped (SIGSTOP, Ctrl-Z).

    A thread looks at the clock all the time; where it could not, nothing ran. A machine that sleeps stops the clock
    itself. Use it in a `with` statement.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, asleep_seconds: float = _ASLEEP_SECONDS) -> None:
        self._now = now
        self._asleep_seconds = asleep_seconds
        self._looked = now()
        self._seconds = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __call__(self) -> float:
        """The seconds so far."""
        with self._lock:
            now = self._now()
            passed, self._looked = now - self._looked, now
            if passed < self._asleep_seconds:
                self._seconds += passed
            return self._seconds

    def __enter__(self) -> "RunningTime":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._asleep_seconds / 20):
            self()


#: Stands around every step of what may be timed: a StepClock, or `no_clock`.
Clock = Callable[[str], contextlib.AbstractContextManager[None]]


def no_clock(step: str) -> contextlib.AbstractContextManager[None]:
    """A clock that measures nothing."""
    return contextlib.nullcontext()


def summed_up(samples: tuple[Sample, ...]) -> Cost:
    """The areas under the curves of samples, each of which stands for the time since the one before."""
    spans = [
        after.seconds - before for before, after in zip((0.0, *(s.seconds for s in samples)), samples, strict=False)
    ]
    gpu = [sample.gpu_mib for sample in samples if sample.gpu_mib is not None]
    return Cost(
        seconds=samples[-1].seconds,
        cpu_area=sum(sample.cpu_percent * span for sample, span in zip(samples, spans, strict=True)),
        gpu_area=sum(max(mib - FREE_GPU_MIB, 0) * span for mib, span in zip(gpu, spans, strict=True)) if gpu else None,
        peak_rss_mib=max(sample.rss_mib for sample in samples),
        peak_gpu_mib=max(gpu) if gpu else None,
        samples=samples,
    )


def peak_rss_mib() -> float:
    """The most main memory that this process has held so far."""
    # Otherwise what the parent held when it started this process may count, too.
    kib = counters("/proc/self/status").get("VmHWM:")
    return peak_bytes() / 2**20 if kib is None else kib / 1024


def _cpu_seconds() -> float:
    return sum(os.times()[:4])
