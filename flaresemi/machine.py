"""Cores and memory that this process may use: the machine's, or what a job, a container or a shell leaves of them.

psutil tells the memory of the machine on every system. It knows nothing of control groups, so those are read here.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flaresemi.portability import Limit, bound_cores, limits, raise_limit

#: Where the kernel's files are looked for.
ROOT = Path("/")

#: Chosen: far more than is needed, and few enough for programs that close every number there could be.
_MOST_FILES = 65536

#: Where control groups are mounted by convention. In a container the table of mounts may show none of them.
_CGROUP_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_CGROUP_V1 = "/sys/fs/cgroup/"


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, at most the quota of its job or container; at least 1."""
    return max(1, round(min([bound_cores(), *_core_limits()])))


def free_memory_gib() -> float:
    """Main memory that can be taken now without swapping, GiB; respects every limit that is set for this process."""
    import psutil  # of 25 ms, which not every command needs

    free = [psutil.virtual_memory().available, *(limit.bytes - limit.used for limit in _memory_limits())]
    return max(min(free), 0) / 2**30


def total_memory_gib() -> float:
    """Main memory of the machine, or the lowest limit that is set for this process, GiB."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit.bytes for limit in _memory_limits())]) / 2**30


def raise_file_limit() -> None:
    """Lets this process, and those that it starts, have as many files open as its hard limit allows, up to 65536."""
    soft, hard = limits("RLIMIT_NOFILE")
    wanted = int(min(hard, _MOST_FILES))
    if soft < wanted:
        raise_limit("RLIMIT_NOFILE", wanted)


def open_file_limit() -> int:
    """How many files this process may have open; 65536 where that is more."""
    return int(min(limits("RLIMIT_NOFILE")[0], _MOST_FILES))


def first_line(path: str | PurePosixPath) -> str:
    """First line of one of the kernel's files; empty where there is no such file."""
    return next(iter(_lines(path)), "").strip()


def processor_fact(*names: str) -> str:
    """What the kernel says of the first core under one of these names; empty where it says nothing."""
    with contextlib.suppress(OSError), open(_here("/proc/cpuinfo"), encoding="utf-8") as file:
        for line in file:  # of hundreds of cores
            name, _, fact = line.partition(":")
            if name.strip() in names:
                return fact.strip()
    return ""


def counters(path: str | PurePosixPath) -> dict[str, int]:
    """The `name number` lines of one of the kernel's files; empty where there is no such file."""
    rows = [line.split() for line in _lines(path)]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Limit:
    """A limit of memory, and what is used of it already, bytes."""

    bytes: int
    used: int


def _core_limits() -> Iterator[float]:
    """Those of the control groups around this process, of both versions; infinite where one sets none."""
    for group in _groups_v2():
        quota, _, period = first_line(group / "cpu.max").partition(" ")
        yield _quota(quota, period)
        yield _listed_cores(first_line(group / "cpuset.cpus.effective"))
    for group in _groups_v1("cpu"):
        yield _quota(first_line(group / "cpu.cfs_quota_us"), first_line(group / "cpu.cfs_period_us"))
    for group in _groups_v1("cpuset"):
        yield _listed_cores(first_line(group / "cpuset.cpus"))


def _memory_limits() -> Iterator[_Limit]:
    """Those of the control groups around this process, of both versions, and those of `ulimit`."""
    # Cached files count as used, but the kernel gives them up before it refuses memory.
    for group in _groups_v2():
        cached = counters(group / "memory.stat").get("inactive_file", 0)
        for name in ("memory.max", "memory.high"):  # above `high` a process is held up
            yield from _limit(first_line(group / name), first_line(group / "memory.current"), cached)
    for group in _groups_v1("memory"):
        statistics = counters(group / "memory.stat")
        used, cached = first_line(group / "memory.usage_in_bytes"), statistics.get("total_inactive_file", 0)
        yield from _limit(first_line(group / "memory.limit_in_bytes"), used, cached)
        # Of the groups above, which a container does not see. Their use is not known, it is at least that of this one.
        yield from _limit(str(statistics.get("hierarchical_memory_limit", "")), used, cached)
    taken = counters("/proc/self/status")
    kinds: tuple[tuple[Limit, str], ...] = (("RLIMIT_AS", "VmSize:"), ("RLIMIT_DATA", "VmData:"))
    for kind, name in kinds:
        soft, _ = limits(kind)
        if soft != math.inf:
            yield _Limit(int(soft), 1024 * taken.get(name, 0))


def _limit(limit: str, used: str, cached: int) -> Iterator[_Limit]:
    if limit.isdigit():  # not "max", and not absent
        yield _Limit(int(limit), max(int(used) - cached, 0) if used.isdigit() else 0)


def _quota(quota: str, period: str) -> float:
    """The cores of a quota of processor time; infinite without one ("max" or -1)."""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf


def _listed_cores(text: str) -> float:
    """How many cores a list such as `0-3,8` names; infinite where there is none."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    if not ranges or not all(low.isdigit() and (not dash or high.isdigit()) for low, dash, high in ranges):
        return math.inf
    return sum(int(high or low) - int(low) + 1 for low, _, high in ranges)


def _groups_v2() -> list[PurePosixPath]:
    """Folders of the control groups (version 2) that this process is in, from its own one up to all of the machine."""
    own = next((path for number, _, path in _memberships() if number == "0"), "/")
    mounts = [(place, top) for kind, place, top, _ in _mounts() if kind == "cgroup2"]
    return _upwards(own, [*mounts, *((place, "/") for place in _CGROUP_V2)])


def _groups_v1(controller: str) -> list[PurePosixPath]:
    """The same for one controller of version 1: each is a tree of its own there."""
    own = next((path for _, names, path in _memberships() if controller in names.split(",")), "/")
    mounts = [(place, top) for kind, place, top, names in _mounts() if kind == "cgroup" and controller in names]
    return _upwards(own, [*mounts, (_CGROUP_V1 + controller, "/")])


def _upwards(own: str, mounts: list[tuple[str, str]]) -> list[PurePosixPath]:
    """The folders of a group and of all groups above it, wherever their tree is mounted, the innermost first.

    Args:
        own: The group by the kernel's name, as an absolute path in the tree.
        mounts: Where the tree is mounted, and which part of it. In a container the name may be the host's, of which the
            mount shows less: then only the mount's own top is there.
    """
    folders: dict[PurePosixPath, None] = {}
    for place, top in mounts:
        group = PurePosixPath(own)
        inside = group.relative_to(top) if group.is_relative_to(top) else group.relative_to("/")
        for part in (inside, *inside.parents) if ".." not in inside.parts else (PurePosixPath(),):
            folder = PurePosixPath(place) / part
            if os.path.isdir(_here(folder)):
                folders[folder] = None
    return list(folders)


def _memberships() -> Iterator[tuple[str, str, str]]:
    """Number of the tree, its controllers and this process's group in it; version 2 has the number 0."""
    for line in _lines("/proc/self/cgroup"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if path.startswith("/"):
            yield number, names, path


def _mounts() -> Iterator[tuple[str, str, str, list[str]]]:
    """Kind, place, part of the tree that is shown, and controllers, of every mounted tree of control groups."""
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        first, last = before.split(" "), after.split(" ")
        if len(first) > 4 and len(last) > 2 and last[0] in ("cgroup", "cgroup2"):
            yield last[0], _unescaped(first[4]), _unescaped(first[3]), last[2].split(",")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _lines(path: str | PurePosixPath) -> list[str]:
    try:
        return _here(path).read_text(encoding="ascii", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _here(path: str | PurePosixPath) -> Path:
    return ROOT / str(path).lstrip("/")
