"""What this machine offers and what limits it, judged: one check per line."""

import dataclasses
import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flaresemi.compute.device import device_name
from flaresemi.compute.precision import cpu_has_bf16
from flaresemi.compute.speed import conv3d_gflops, disk_speed
from flaresemi.machine import available_cores, first_line, free_memory_gib, total_memory_gib

# What is too little. Chosen; a problem is what stops a training, a note what slows it down or may stop a larger one.
_NEEDED_FREE_GIB, _WISHED_FREE_GIB = 1.0, 4.0
_NEEDED_DISK_GIB, _WISHED_DISK_GIB = 1.0, 20.0
_NEEDED_FILES, _WISHED_FILES = 128, 1024
_WISHED_SHM_GIB = 1.0
_WISHED_MB_PER_SECOND = 50.0
_WISHED_GFLOPS = 20.0
_SEMAPHORES_GIB = 1 / 1024

_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
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
    verdict: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""

    def __post_init__(self) -> None:
        if self.verdict == "problem" and not self.advice:
            raise ValueError(f"{self.name}: a problem comes with what to do")


def packages(distribution: str = "flaresemi") -> list[Check]:
    """Python and the packages, against the ranges that the installed distribution declares."""
    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        value = f"{distribution} is not installed as a package: its ranges are not known"
        return [Check(name="packages", value=value, verdict="note", advice="pip install . in the source folder")]
    python, wanted = platform.python_version(), metadata["Requires-Python"] or ""
    checks = [Check(name="Python", value=f"{python} ({wanted})")]
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        checks = [
            Check(name="Python", value=f"{python}, needed is {wanted}", verdict="problem", advice="install another")
        ]
    required = [Requirement(line) for line in importlib.metadata.requires(distribution) or ()]
    needed = [each for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = {each.name: why for each in needed if (why := _misfit(each))}
    if wrong:
        names = " ".join(f"'{each.name}{each.specifier}'" for each in needed if each.name in wrong)
        value = "; ".join(f"{name} {why}" for name, why in wrong.items())
        return [*checks, Check(name="packages", value=value, verdict="problem", advice=f"pip install {names}")]
    return [*checks, Check(name="packages", value=f"all {len(needed)} in their ranges")]


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
    value = f"{device_name(_CPU)}; {cores} of {present} core(s) may be used"
    checks = [Check(name="processor", value=value)]
    if cores < present:
        advice = "more for this container or job: docker run --cpus, sbatch --cpus-per-task"
        checks = [Check(name="processor", value=value, verdict="note", advice=advice)]
    value = f"torch computes with {threads} on {cores} core(s)"
    if threads == cores:
        checks.append(Check(name="threads", value=value))
    else:
        asked = os.environ.get("OMP_NUM_THREADS")
        advice = f"set OMP_NUM_THREADS={cores}" + (f", which is {asked} now" if asked else "")
        checks.append(Check(name="threads", value=value, verdict="note", advice=advice))
    bf16 = "in hardware" if cpu_has_bf16() else "not in hardware: fp32 is computed"
    return [*checks, Check(name="bf16 on the CPU", value=bf16)]


def convolution(device: torch.device) -> Check:
    """Speed of a convolution in what a training on the device would compute in, in both memory layouts."""
    dtypes = {"fp32": torch.float32}
    if device.type == "cuda":
        dtypes |= {"fp16": torch.float16}
        if torch.cuda.get_device_capability(device)[0] >= 8:
            dtypes |= {"bf16": torch.bfloat16}
    elif cpu_has_bf16():
        dtypes |= {"bf16": torch.bfloat16}
    name = f"conv3d on {device}"
    speeds, best = [], 0.0
    try:
        for word, dtype in dtypes.items():
            plain, last = (conv3d_gflops(device, dtype, channels_last=layout) for layout in (False, True))
            speeds.append(f"{word} {plain:.0f} contiguous, {last:.0f} channels-last")
            best = max(best, plain, last)
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[0]
        return Check(
            name=name, value=f"torch {torch.__version__} cannot compute there: {reason}", verdict="problem",
            advice="install a torch that is built for this GPU (https://pytorch.org), or use --device cpu",
        )  # fmt: skip
    value = f"{'; '.join(speeds)} GFLOP/s"
    if best < _WISHED_GFLOPS:
        return Check(name=name, value=value, verdict="note", advice="slow, or busy just now: train on a GPU")
    return Check(name=name, value=value)


def gpus() -> list[Check]:
    """Driver, CUDA and the GPUs with their memory."""
    driver = _driver()
    built = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        value = f"none for torch {torch.__version__}, which is built without CUDA"
        if not driver:
            return [Check(name="GPU", value=value)]
        advice = "there is an NVIDIA driver: install a torch with CUDA (https://pytorch.org)"
        return [Check(name="GPU", value=f"{value}; driver {driver}", verdict="note", advice=advice)]
    if not torch.cuda.is_available():
        if not driver:
            return [Check(name="GPU", value=f"none: no NVIDIA driver; {built}")]
        advice = f"update the driver for CUDA {torch.version.cuda}; in a container: docker run --gpus all"
        value = f"none that torch can use; {built}, driver {driver}"
        return [Check(name="GPU", value=value, verdict="note", advice=advice)]
    checks = [Check(name="CUDA", value=f"{built}, driver {driver or 'unknown'}")]
    for index in range(torch.cuda.device_count()):
        free, total = (each / 2**30 for each in torch.cuda.mem_get_info(index))
        value = f"{torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GiB free"
        if free < 0.8 * total:
            note = "others use it (nvidia-smi shows who): wait for them, or choose another with --device"
            checks.append(Check(name=f"GPU {index}", value=value, verdict="note", advice=note))
        else:
            checks.append(Check(name=f"GPU {index}", value=value))
    return checks


def _driver() -> str:
    """Version of the NVIDIA driver; empty without one."""
    words = first_line("/proc/driver/nvidia/version").split()
    return next((word for word in words if word[0].isdigit()), "unknown") if words else ""


def memory() -> Check:
    """Main memory, with the limit of a container."""
    free = free_memory_gib()
    value = f"{free:.1f} of {total_memory_gib():.1f} GiB free"
    advice = "end other programs, or give the container or job more (docker run --memory, sbatch --mem)"
    return _graded("memory", value, free, needed=_NEEDED_FREE_GIB, wished=_WISHED_FREE_GIB, advice=advice)


def shared_memory(folder: Path = Path("/dev/shm"), *, gpu_count: int = 0) -> Check:
    """Shared memory, which several GPUs talk through, and in which worker processes keep their semaphores."""
    name, enlarge = "shared memory", "docker run --shm-size=8g, or --ipc=host"
    if not folder.is_dir():
        return Check(name=name, value=f"no {folder} on this system")
    usage = shutil.disk_usage(folder)
    size, free = usage.total / 2**30, usage.free / 2**30
    value = f"{_size(free)} of {_size(size)} free in {folder}"
    if free < _SEMAPHORES_GIB or not os.access(folder, os.W_OK):
        advice = f"worker processes cannot start: empty it, or enlarge it ({enlarge})"
        return Check(name=name, value=value, verdict="problem", advice=advice)
    if size >= _WISHED_SHM_GIB:
        return Check(name=name, value=value)
    if gpu_count > 1:
        return Check(name=name, value=value, verdict="problem", advice=f"--gpus needs more: {enlarge}")
    advice = f"enough here: loader processes do not use it; only several GPUs would need more ({enlarge})"
    return Check(name=name, value=value, verdict="note", advice=advice)


def open_files() -> Check:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Check(name="open files", value="no limit")
    value = f"at most {soft} (could be raised to {'any' if hard == resource.RLIM_INFINITY else hard})"
    advice = "ulimit -n 4096 in the shell; docker run --ulimit nofile=4096"
    return _graded("open files", value, soft, needed=_NEEDED_FILES, wished=_WISHED_FILES, advice=advice)


def disk(folder: Path) -> list[Check]:
    """Space and speed where a workspace is, or would be; nothing is left there."""
    place = next((each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()), Path("/"))
    free = shutil.disk_usage(place).free / 2**30
    advice = "free some, or name a workspace on another disk with -w"
    checks = [
        _graded(
            "disk", f"{_size(free)} free at {place}", free,
            needed=_NEEDED_DISK_GIB, wished=_WISHED_DISK_GIB, advice=advice,
        )
    ]  # fmt: skip
    try:
        write, read = disk_speed(place)
    except OSError as problem:
        return [
            *checks,
            Check(
                name="writing", value=f"{place} cannot be written to: {problem.strerror}", verdict="problem",
                advice="change its permissions, free space, or name another workspace with -w",
            ),
        ]  # fmt: skip
    value = f"writes {write:.0f} MB/s, reads {read:.0f} MB/s, one after the other"
    if min(write, read) < _WISHED_MB_PER_SECOND:
        advice = "patches are read from here: a faster, local disk keeps the network busy (-w)"
        return [*checks, Check(name="disk speed", value=value, verdict="note", advice=advice)]
    return [*checks, Check(name="disk speed", value=value)]


def machine(folder: Path) -> Iterator[Check]:
    """Everything, one after the other, in about ten seconds at most.

    Args:
        folder: Of the workspace, there or not.
    """
    yield from packages()
    yield from processor()
    yield convolution(_CPU)
    found = gpus()
    yield from found
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        yield convolution(torch.device("cuda", index))
    yield memory()
    yield shared_memory(gpu_count=count)
    yield open_files()
    yield from disk(folder)


def _graded(name: str, value: str, amount: float, *, needed: float, wished: float, advice: str) -> Check:
    if amount >= wished:
        return Check(name=name, value=value)
    verdict: Literal["note", "problem"] = "note" if amount >= needed else "problem"
    return Check(name=name, value=value, verdict=verdict, advice=advice)


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"
