"""Preflight: checks of what the machine offers and what limits it, each in a line with what to do about it."""

import dataclasses
import importlib.metadata
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flaresemi.compute.device import device_name
from flaresemi.compute.precision import cpu_has_bf16
from flaresemi.machine import available_cores, first_line, free_memory_gib, total_memory_gib
from flaresemi.portability import forget_cached, limits

# What is too little. Chosen; a problem is what stops a training, a note what slows it down or may stop a larger one.
_NEEDED_FREE_GIB, _WISHED_FREE_GIB = 1.0, 4.0
_NEEDED_DISK_GIB, _WISHED_DISK_GIB = 1.0, 20.0
_NEEDED_FILES, _WISHED_FILES = 128, 1024
_WISHED_SHM_GIB = 1.0
_WISHED_MB_PER_SECOND = 50.0
_WISHED_GFLOPS = 20.0
_SEMAPHORES_GIB = 1 / 1024

#: The measured layer: like one in the middle of a U-Net, small enough for a laptop. Chosen.
_CHANNELS, _EDGE_VOXELS, _BATCH = 32, 40, 2

_BLOCK_BYTES = 4 * 2**20
_LONGEST_SECONDS = 2.0

_CPU = torch.device("cpu")

Verdict = Literal["ok", "note", "problem"]


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of the thing.
        value: What was found.
        verdict: `problem`: it would stop a training; `note`: it limits one, or a person should know.
        advice: What to do about it; for every problem.
    """

    name: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""

    def __post_init__(self) -> None:
        if self.verdict == "problem" and not self.advice:
            raise ValueError(f"{self.name}: a problem comes with what to do")


def machine(folder: Path) -> Iterator[Check]:
    """Everything, one after the other, in about ten seconds at most.

    Args:
        folder: Of the workspace, there or not.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield from packages()
    yield from processor()
    yield convolution(_CPU)
    yield from gpus()
    for index in range(count):
        yield convolution(torch.device("cuda", index))
    yield memory()
    yield shared_memory(gpu_count=count)
    yield open_files()
    yield from disk(folder)


def packages(distribution: str = "flaresemi") -> list[Check]:
    """Python and the packages, against the ranges that the installed distribution declares."""
    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        value = f"{distribution} is not installed as a package: its ranges are not known"
        return [Check("packages", value, "note", "pip install . in the source folder")]
    python, wanted = platform.python_version(), metadata["Requires-Python"] or ""
    checks = [Check("Python", f"{python} ({wanted})")]
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        checks = [Check("Python", f"{python}, needed is {wanted}", "problem", "install another")]
    required = [Requirement(line) for line in importlib.metadata.requires(distribution) or ()]
    needed = [each for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = {each: why for each in needed if (why := _misfit(each))}
    if not wrong:
        return [*checks, Check("packages", f"all {len(needed)} in their ranges")]
    value = "; ".join(f"{each.name} {why}" for each, why in wrong.items())
    names = " ".join(f"'{each.name}{each.specifier}'" for each in wrong)
    return [*checks, Check("packages", value, "problem", f"pip install {names}")]


def _misfit(requirement: Requirement) -> str:
    """Why a requirement is not met; empty when it is."""
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
    fits = requirement.specifier.contains(found, prereleases=True)
    return "" if fits else f"is {found}, needed is {requirement.specifier}"


def processor() -> list[Check]:
    """The processor, the cores and threads to use of it, and what it computes in hardware."""
    cores, present, threads = available_cores(), os.cpu_count() or 1, torch.get_num_threads()
    fewer = "more for this container or job: docker run --cpus, sbatch --cpus-per-task"
    asked = os.environ.get("OMP_NUM_THREADS")
    other = f"set OMP_NUM_THREADS={cores}" + (f", which is {asked} now" if asked else "")
    return [
        _noted("processor", f"{device_name(_CPU)}; {cores} of {present} core(s) may be used", cores < present, fewer),
        _noted("threads", f"torch computes with {threads} on {cores} core(s)", threads != cores, other),
        Check("bf16 on the CPU", "in hardware" if cpu_has_bf16() else "not in hardware: fp32 is computed"),
    ]


def convolution(device: torch.device) -> Check:
    """Speed of a convolution in what a training on the device would compute in, in both memory formats."""
    dtypes = {"fp32": torch.float32}
    if device.type == "cuda":
        dtypes |= {"fp16": torch.float16}
    if cpu_has_bf16() if device.type == "cpu" else torch.cuda.get_device_capability(device)[0] >= 8:
        dtypes |= {"bf16": torch.bfloat16}
    name, speeds, best = f"conv3d on {device}", [], 0.0
    try:
        for word, dtype in dtypes.items():
            plain, last = (conv3d_gflops(device, dtype, channels_last=each) for each in (False, True))
            speeds.append(f"{word} {plain:.0f} contiguous, {last:.0f} channels-last")
            best = max(best, plain, last)
    except RuntimeError as problem:
        value = f"torch {torch.__version__} cannot compute there: {str(problem).strip().splitlines()[0]}"
        advice = "install a torch that is built for this GPU (https://pytorch.org), or use --device cpu"
        return Check(name, value, "problem", advice)
    advice = "slow, or busy just now: train on a GPU"
    return _noted(name, f"{'; '.join(speeds)} GFLOP/s", best < _WISHED_GFLOPS, advice)


def conv3d_gflops(device: torch.device, dtype: torch.dtype, *, channels_last: bool, seconds: float = 0.5) -> float:
    """Operations per second of a 3×3×3 convolution, 10⁹/s; a multiplication with its addition counts 2.

    Args:
        dtype: float32, or what the device computes fast.
        channels_last: The memory format of features and weights.
        seconds: About how long to try; the fastest of the tries counts, so that a busy moment does not.

    Raises:
        RuntimeError: this torch cannot compute on the device.
    """
    from torch.utils.benchmark import Timer  # of no use to other commands

    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    weight, features = (
        torch.randn(shape, device=device).to(dtype, memory_format=memory_format)
        for shape in ((_CHANNELS, _CHANNELS, 3, 3, 3), (_BATCH, _CHANNELS, *(_EDGE_VOXELS,) * 3))
    )
    given = {"conv3d": F.conv3d, "features": features, "weight": weight}
    timer = Timer("conv3d(features, weight, padding=1)", globals=given, num_threads=torch.get_num_threads())
    with torch.inference_mode():
        fastest = min(timer.blocked_autorange(min_run_time=seconds).times)
    return 2 * 27 * _CHANNELS**2 * _BATCH * _EDGE_VOXELS**3 / fastest / 1e9


def gpus() -> list[Check]:
    """Driver, CUDA and the GPUs with their memory."""
    driver = _driver()
    built = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        value = f"none for torch {torch.__version__}, which is built without CUDA"
        advice = "there is an NVIDIA driver: install a torch with CUDA (https://pytorch.org)"
        return [Check("GPU", f"{value}; driver {driver}", "note", advice) if driver else Check("GPU", value)]
    if not torch.cuda.is_available():
        if not driver:
            return [Check("GPU", f"none: no NVIDIA driver; {built}")]
        advice = f"update the driver for CUDA {torch.version.cuda}; in a container: docker run --gpus all"
        return [Check("GPU", f"none that torch can use; {built}, driver {driver}", "note", advice)]
    checks = [Check("CUDA", f"{built}, driver {driver or 'unknown'}")]
    for index in range(torch.cuda.device_count()):
        free, total = (each / 2**30 for each in torch.cuda.mem_get_info(index))
        value = f"{torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GiB free"
        advice = "others use it (nvidia-smi shows who): wait for them, or choose another with --device"
        checks.append(_noted(f"GPU {index}", value, free < 0.8 * total, advice))
    return checks


def _driver() -> str:
    """Version of the NVIDIA driver; empty without one. torch tells all else, so that nvidia-ml-py is not needed."""
    words = first_line("/proc/driver/nvidia/version").split()
    return next((word for word in words if word[0].isdigit()), "unknown") if words else ""


def memory() -> Check:
    """Main memory, with the limit of a container."""
    free = free_memory_gib()
    value = f"{free:.1f} of {total_memory_gib():.1f} GiB free"
    advice = "end other programs, or give the container or job more (docker run --memory, sbatch --mem)"
    return _graded("memory", value, free, _NEEDED_FREE_GIB, _WISHED_FREE_GIB, advice)


def shared_memory(folder: Path = Path("/dev/shm"), *, gpu_count: int = 0) -> Check:
    """Shared memory, which several GPUs talk through, and in which worker processes keep their semaphores."""
    name, enlarge = "shared memory", "docker run --shm-size=8g, or --ipc=host"
    if not folder.is_dir():
        return Check(name, f"no {folder} on this system")
    usage = shutil.disk_usage(folder)
    size, free = usage.total / 2**30, usage.free / 2**30
    value = f"{_size(free)} of {_size(size)} free in {folder}"
    if free < _SEMAPHORES_GIB or not os.access(folder, os.W_OK):
        return Check(name, value, "problem", f"worker processes cannot start: empty it, or enlarge it ({enlarge})")
    if size < _WISHED_SHM_GIB and gpu_count > 1:
        return Check(name, value, "problem", f"--gpus needs more: {enlarge}")
    advice = f"enough here: loader processes do not use it; only several GPUs would need more ({enlarge})"
    return _noted(name, value, size < _WISHED_SHM_GIB, advice)


def open_files() -> Check:
    """How many files a process may have open."""
    soft, hard = limits("RLIMIT_NOFILE")
    if soft == math.inf:
        return Check("open files", "no limit")
    value = f"at most {soft} (could be raised to {'any' if hard == math.inf else hard})"
    advice = "ulimit -n 4096 in the shell; docker run --ulimit nofile=4096"
    return _graded("open files", value, soft, _NEEDED_FILES, _WISHED_FILES, advice)


def disk(folder: Path) -> list[Check]:
    """Space and speed where a workspace is, or would be; nothing is left there."""
    place = next((each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()), Path("/"))
    free = shutil.disk_usage(place).free / 2**30
    advice = "free some, or name a workspace on another disk with -w"
    space = _graded("disk", f"{_size(free)} free at {place}", free, _NEEDED_DISK_GIB, _WISHED_DISK_GIB, advice)
    try:
        write, read = disk_speed(place)
    except OSError as problem:
        advice = "change its permissions, free space, or name another workspace with -w"
        return [space, Check("writing", f"{place} cannot be written to: {problem.strerror}", "problem", advice)]
    value = f"writes {write:.0f} MB/s, reads {read:.0f} MB/s, one after the other"
    advice = "patches are read from here: a faster, local disk keeps the network busy (-w)"
    return [space, _noted("disk speed", value, min(write, read) < _WISHED_MB_PER_SECOND, advice)]


def disk_speed(folder: Path, mib: int = 64) -> tuple[float, float]:
    """Sequential writing, to the end of its way to the disk, and reading, MB/s.

    The file has no name where the system can do that, and in any case is gone afterwards, also when the process is
    killed. On a slow disk less than `mib` is written.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    block = os.urandom(_BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start, written = time.perf_counter(), 0
        while written < mib * 2**20 and time.perf_counter() - start < _LONGEST_SECONDS:
            written += file.write(block)
        os.fsync(file.fileno())
        writing = time.perf_counter() - start
        forget_cached(file.fileno())  # or it would be read from there
        file.seek(0)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < _LONGEST_SECONDS and (found := file.read(_BLOCK_BYTES)):
            count += len(found)
        reading = time.perf_counter() - start
    return written / writing / 1e6, count / reading / 1e6


def _noted(name: str, value: str, is_limit: bool, advice: str) -> Check:
    return Check(name, value, "note", advice) if is_limit else Check(name, value)


def _graded(name: str, value: str, amount: float, needed: float, wished: float, advice: str) -> Check:
    verdict: Verdict = "ok" if amount >= wished else "note" if amount >= needed else "problem"
    return Check(name, value, verdict, "" if verdict == "ok" else advice)


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"
