"""Shards: every case in exactly one, whoever launched them."""

import pytest
import torch

from flaresemi.compute.distributed import Ranks
from flaresemi.compute.sharding import Shard, joint_shard, shard
from flaresemi.errors import ConfigError

CASES = [f"case_{number}" for number in range(10)]


def array(task: int, first: int, last: int, count: int) -> dict[str, str]:
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_every_case_is_in_exactly_one_shard(count: int) -> None:
    parts = [Shard(number, count).of(CASES[::-1]) for number in range(count)]
    assert sorted(name for part in parts for name in part) == CASES
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_that_helps_begins_with_its_own_part() -> None:
    for number in range(3):
        order = Shard(number, 3, helps=True).before_others(CASES[::-1])
        assert sorted(order) == CASES
        own = Shard(number, 3).before_others(CASES[::-1])
        assert own == Shard(number, 3).of(CASES)
        assert order[: len(own)] == own


def test_by_hand() -> None:
    assert shard("1/4", {}) == Shard(1, 4)
    with pytest.raises(ConfigError, match="no shard 4 of 4"):
        shard("4/4", {})
    with pytest.raises(ConfigError, match="no shard 0 of 0"):
        shard("0/0", {})
    with pytest.raises(ConfigError, match="'half' is no shard"):
        shard("half", {})


@pytest.mark.parametrize(("first", "last", "step"), [(0, 3, 1), (1, 4, 1), (0, 30, 10)])
def test_a_slurm_array_however_it_is_numbered(first: int, last: int, step: int) -> None:
    tasks = range(first, last + 1, step)
    found = [shard("slurm", array(task, first, last, len(tasks))) for task in tasks]
    assert found == [Shard(number, 4, helps=True) for number in range(4)]


def test_a_single_slurm_task_takes_everything() -> None:
    assert shard("slurm", array(7, 7, 7, 1)) == Shard(0, 1, helps=True)


def test_a_slurm_array_with_gaps_is_refused() -> None:
    with pytest.raises(ConfigError, match="task 3 has no clear place among 3 tasks from 1 to 7"):
        shard("slurm", array(3, 1, 7, 3))
    with pytest.raises(ConfigError, match="no clear place"):  # --array=1,2,5,7
        shard("slurm", array(2, 1, 7, 4))
    with pytest.raises(ConfigError, match="not set"):
        shard("slurm", {})


def test_a_rank_of_torchrun_takes_its_gpu() -> None:
    found = shard("torchrun", {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert found == Shard(5, 8, helps=True, local_rank=1)
    assert not found.speaks
    assert shard("torchrun", {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}).speaks
    with pytest.raises(ConfigError, match="RANK and WORLD_SIZE are not set"):
        shard("torchrun", {"SLURM_ARRAY_TASK_ID": "0"})


def test_a_rank_works_on_its_gpu_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flaresemi.compute.sharding.select_device", torch.device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert Shard(5, 8, local_rank=1).device("cuda") == torch.device("cuda:1")
    assert Shard(5, 8, local_rank=5).device("cuda") == torch.device("cuda:1")  # more ranks than GPUs
    assert Shard(5, 8, local_rank=1).device("cuda:3") == torch.device("cuda:3")
    assert Shard(5, 8, local_rank=1).device("cpu") == torch.device("cpu")
    assert Shard(5, 8).device("cuda") == torch.device("cuda")


def test_nothing_is_taken_from_the_environment_unasked() -> None:
    assert shard("0/2", array(1, 0, 1, 2) | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == Shard(0, 2)


def test_the_processes_of_a_launch_share_what_the_launch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joint_shard(None, Ranks()) == joint_shard(None, None) == Shard()
    assert joint_shard(None, Ranks(1, 4, 1)) == Shard(1, 4, helps=True, local_rank=1)
    halves = [[joint_shard(f"{half}/2", Ranks(rank, 3, rank)) for rank in range(3)] for half in range(2)]
    for half, parts in enumerate(halves):
        assert sorted(
            name for part in parts for name in part.before_others(CASES)[: len(part.of(part.within.of(CASES)))]
        ) == (Shard(half, 2).of(CASES))
        assert all(sorted(part.before_others(CASES)) == Shard(half, 2).of(CASES) for part in parts)
    for name, value in array(1, 0, 1, 2).items():
        monkeypatch.setenv(name, value)
    assert joint_shard("slurm", Ranks(1, 4, 1)) == Shard(5, 8, helps=True, local_rank=1)
