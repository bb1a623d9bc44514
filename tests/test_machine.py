"""The limits of jobs and containers, on made-up trees of /proc and /sys as kernels, SLURM and Docker make them."""

import os
import resource
import types

import psutil
import pytest

from flaresemi.machine import available_cores, free_memory_gib, total_memory_gib

GIB = 2**30
V2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "".join(
    f"{40 + number} 20 0:{27 + number} {{top}} /sys/fs/cgroup/{names} rw - cgroup cgroup rw,{names}\n"
    for number, names in enumerate(("memory", "cpu,cpuacct", "cpuset"))
)
NO_LIMIT_V1 = "9223372036854771712"


@pytest.fixture(autouse=True)
def large_machine(kernel_files, monkeypatch):
    """64 cores and 256 GiB, of which 200 are free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=256 * GIB, available=200 * GIB))


def limit_v2(files, group, *, maximum="max", high="max", used_gib=0.0, cached_gib=0.0):
    files[f"{group}/memory.max"] = f"{maximum}\n"
    files[f"{group}/memory.high"] = f"{high}\n"
    files[f"{group}/memory.current"] = f"{int(used_gib * GIB)}\n"
    files[f"{group}/memory.stat"] = f"anon 0\ninactive_file {int(cached_gib * GIB)}\n"


def limit_v1(files, group, *, maximum=NO_LIMIT_V1, used_gib=0.0, cached_gib=0.0, above=NO_LIMIT_V1):
    files[f"{group}/memory.limit_in_bytes"] = f"{maximum}\n"
    files[f"{group}/memory.usage_in_bytes"] = f"{int(used_gib * GIB)}\n"
    files[f"{group}/memory.stat"] = f"hierarchical_memory_limit {above}\ntotal_inactive_file {int(cached_gib * GIB)}\n"


def test_a_machine_without_limits():
    assert (available_cores(), free_memory_gib(), total_memory_gib()) == (64, 200, 256)


@pytest.mark.parametrize("own", ["0::/\n", "0::/docker/abc\n", "0::/../other\n", ""])
def test_a_container_sees_its_own_group_at_the_top(kernel_files, monkeypatch, own):
    kernel_files["/proc/self/cgroup"] = own
    limit_v2(kernel_files, "/sys/fs/cgroup", maximum=16 * GIB, used_gib=15, cached_gib=10)
    assert (free_memory_gib(), total_memory_gib()) == (11, 16)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=256 * GIB, available=4 * GIB))
    assert free_memory_gib() == 4


def test_the_tightest_of_nested_groups_counts(kernel_files):
    """As SLURM makes them: the limit stands at the job, the process in a step of it."""
    job = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7"
    kernel_files["/proc/self/mountinfo"] = V2
    kernel_files["/proc/self/cgroup"] = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
    limit_v2(kernel_files, f"{job}/step_0/user/task_0", used_gib=0.5)
    limit_v2(kernel_files, f"{job}/step_0", maximum=3 * GIB, used_gib=0.5)
    limit_v2(kernel_files, job, maximum=2 * GIB, used_gib=1, cached_gib=0.25)
    assert (free_memory_gib(), total_memory_gib()) == (1.25, 2)
    limit_v2(kernel_files, f"{job}/step_0", high=GIB, used_gib=0.5)
    assert (free_memory_gib(), total_memory_gib()) == (0.5, 1)
    for group, quota in ((f"{job}/step_0/user/task_0", "max 100000"), (job, "400000 100000")):
        kernel_files[f"{group}/cpu.max"] = quota
    assert available_cores() == 4
    kernel_files[f"{job}/step_0/cpuset.cpus.effective"] = "0,8-9\n"
    assert available_cores() == 3


@pytest.mark.parametrize("mounts", ["", V1.replace("{top}", "/")])
def test_version_1_has_a_tree_for_each_controller(kernel_files, mounts):
    kernel_files["/proc/self/mountinfo"] = mounts
    kernel_files["/proc/self/cgroup"] = "4:memory:/slurm/uid_1/job_7/step_0\n3:cpu,cpuacct:/slurm\n2:cpuset:/slurm\n"
    limit_v1(kernel_files, "/sys/fs/cgroup/memory")
    limit_v1(kernel_files, "/sys/fs/cgroup/memory/slurm/uid_1/job_7", maximum=2 * GIB, used_gib=1.5, cached_gib=0.5)
    assert (free_memory_gib(), total_memory_gib()) == (1, 2)
    cpu = "/sys/fs/cgroup/cpu,cpuacct" if mounts else "/sys/fs/cgroup/cpu"
    kernel_files[f"{cpu}/cpu.cfs_quota_us"], kernel_files[f"{cpu}/cpu.cfs_period_us"] = "-1", "100000"
    assert available_cores() == 64
    kernel_files[f"{cpu}/slurm/cpu.cfs_quota_us"], kernel_files[f"{cpu}/slurm/cpu.cfs_period_us"] = "250000", "50000"
    assert available_cores() == 5
    kernel_files["/sys/fs/cgroup/cpuset/slurm/cpuset.cpus"] = "4-5"
    assert available_cores() == 2


def test_a_container_of_version_1_knows_of_the_limits_above_it(kernel_files):
    kernel_files["/proc/self/mountinfo"] = V1.replace("{top}", "/docker/abc")
    kernel_files["/proc/self/cgroup"] = "4:memory:/docker/abc/inner\n"
    limit_v1(kernel_files, "/sys/fs/cgroup/memory", used_gib=1, above=8 * GIB)
    assert (free_memory_gib(), total_memory_gib()) == (7, 8)
    limit_v1(kernel_files, "/sys/fs/cgroup/memory/inner", maximum=4 * GIB, used_gib=1)  # "inner" of what is mounted
    assert (free_memory_gib(), total_memory_gib()) == (3, 4)


def test_both_versions_side_by_side(kernel_files):
    unified = "50 20 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    kernel_files["/proc/self/mountinfo"] = V1.replace("{top}", "/") + unified
    kernel_files["/proc/self/cgroup"] = "4:memory:/user.slice\n3:cpu,cpuacct:/\n0::/user.slice/session.scope\n"
    limit_v1(kernel_files, "/sys/fs/cgroup/memory/user.slice", maximum=32 * GIB)
    kernel_files["/sys/fs/cgroup/unified/user.slice/cpu.max"] = "1600000 100000"
    assert (available_cores(), free_memory_gib()) == (16, 32)
    limit_v2(kernel_files, "/sys/fs/cgroup/unified/user.slice", maximum=16 * GIB)
    assert free_memory_gib() == 16


def test_trees_that_are_mounted_elsewhere(kernel_files):
    kernel_files["/proc/self/mountinfo"] = r"30 20 0:26 / /my\040groups rw - cgroup2 none rw" + "\n"
    kernel_files["/proc/self/cgroup"] = "0::/job\n"
    limit_v2(kernel_files, "/my groups/job", maximum=2 * GIB)
    assert total_memory_gib() == 2


@pytest.mark.parametrize("quota", ["max 100000", "6400000 100000", "", "x", "1 0", "-5 100000"])
def test_quotas_that_limit_nothing(kernel_files, quota):
    kernel_files["/sys/fs/cgroup/cpu.max"] = quota
    assert available_cores() == 64


@pytest.mark.parametrize(("quota", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1)])
def test_a_quota_gives_at_least_one_core(kernel_files, quota, expected):
    kernel_files["/sys/fs/cgroup/cpu.max"] = quota
    assert available_cores() == expected


def test_what_a_process_is_bound_to_counts(monkeypatch, kernel_files):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7})
    kernel_files["/sys/fs/cgroup/cpu.max"] = "800000 100000"
    assert available_cores() == 2


def test_limits_of_the_shell(monkeypatch, kernel_files):
    """`ulimit -v`, as some schedulers set it."""
    kernel_files["/proc/self/status"] = f"Name:\tpython\nVmSize:\t {3 * 2**20} kB\nVmData:\t {2**20} kB\n"
    limits = {resource.RLIMIT_AS: 8 * GIB}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY), -1))
    assert (free_memory_gib(), total_memory_gib()) == (5, 8)
    limits[resource.RLIMIT_DATA] = 4 * GIB
    assert (free_memory_gib(), total_memory_gib()) == (3, 4)


def test_more_in_use_than_allowed_leaves_nothing(kernel_files):
    limit_v2(kernel_files, "/sys/fs/cgroup", maximum=GIB, used_gib=2)
    assert free_memory_gib() == 0


def test_the_real_machine_has_cores_and_memory(monkeypatch):
    monkeypatch.undo()
    assert 1 <= available_cores() <= os.cpu_count()
    assert 0 < free_memory_gib() <= total_memory_gib() < 1e5
