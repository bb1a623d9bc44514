import dataclasses
from collections.abc import Callable

import pytest
import torch

from flaresemi.training import profiling
from flaresemi.training.config import TrainingConfig
from flaresemi.training.history import read_history
from flaresemi.training.profiling import PARTS, Profile, profile
from flaresemi.training.sampling import PatchSampler
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer

CPU = torch.device("cpu")
MakeTask = Callable[..., TrainingTask]

MADE = Profile(
    device="cpu",
    is_gpu=False,
    steps=10,
    batch_size=2,
    processes=1,
    workers=1,
    cores=8,
    threads=8,
    augmentation="strong",
    seconds=1.0,
    parts={"wait": 0.0, "transfer": 0.0, "forward": 0.3, "loss": 0.05, "backward": 0.6, "optimizer": 0.05},
    read=(0.01, 0.01),
    augment=(0.1, 0.1),
    peak_mib=1000.0,
    worker_peak_mib=300.0,
    gpu_peak_mib=None,
    gpu_mib=None,
)


def made(**changes: object) -> Profile:
    return dataclasses.replace(MADE, **changes)  # type: ignore[arg-type]


def waiting(**changes: object) -> Profile:
    """A step of which 0.9 s are spent on waiting for patches that cost a second each."""
    parts = dict.fromkeys(PARTS, 0.02) | {"wait": 0.9}
    return made(**({"parts": parts, "augment": (1.0, 1.0)} | changes))


def test_a_profile_tells_every_part_and_changes_nothing(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    whole, task = make_task("whole"), make_task("profiled")
    config = dataclasses.replace(quick_config, iterations=4, validations=0)
    trainer = Trainer(task, config, device=CPU)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    found = profile(trainer, 2)
    assert not task.folder.root.exists()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    assert set(found.parts) == {*PARTS} - {"augment"}  # of which the loader tells
    assert all(seconds > 0 for seconds in found.parts.values())
    assert 0.5 * found.seconds < sum(found.parts.values()) <= found.seconds * 1.001
    # Without loader processes, the wait is for both samples of the step.
    sample = found.read[0] + found.augment[0]
    assert 0 < 2 * sample <= found.parts["wait"] * 2
    assert found.worker_peak_mib is None
    assert all(word in found.table() for word in ("waiting for data", "read", "augment", "backward", "patches/s"))
    # A training with the same trainer afterwards is the one that it would have been.
    assert trainer.fit()
    assert Trainer(whole, config, device=CPU).fit()
    losses = [[row["loss"] for row in read_history(each.folder.history)] for each in (whole, task)]
    assert losses[0] == losses[1]


def test_augmentation_on_the_device_is_a_part_of_the_step(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    config = dataclasses.replace(quick_config, augmentation_device="device")
    found = profile(Trainer(make_task(), config, device=CPU), 2)
    assert list(found.parts) == list(PARTS)
    assert found.parts["augment"] > 0
    assert found.read[0] > 0
    assert found.augment == (0, 0)
    assert found.on_device


def test_a_slow_disk_shows_where_it_is_slow(
    make_task: MakeTask, quick_config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    draw = PatchSampler._patch_start

    def slow(self: PatchSampler, *arguments: object) -> object:
        time.sleep(0.2)
        return draw(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PatchSampler, "_patch_start", slow)
    monkeypatch.setattr(profiling, "WARM_UP_STEPS", 1)
    found = profile(Trainer(make_task(), quick_config, device=CPU), 1)
    wall, cpu = found.read
    assert wall >= 0.2
    assert cpu < 0.5 * wall  # sleeping is no work
    assert found.parts["wait"] >= 0.4
    assert found.augment[0] < wall or found.augment[1] > cpu


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (MADE, "the network limits, with 90% of the step; a GPU"),
        (made(threads=1), "1 thread(s) on 8 cores: set OMP_NUM_THREADS"),
        (made(is_gpu=True), "try --compile"),
        (made(is_gpu=True, gpu_peak_mib=4000.0, gpu_mib=80000.0), "5% of the GPU's memory is used; --batch-size 4"),
        (made(parts=MADE.parts | {"forward": 0.15, "optimizer": 0.2}), "--batch-size 4 shares them"),
        (waiting(), "the loader limits: it prepares 0.99 patches/s, 20 could be taken; try --loader-workers 7"),
        (waiting(workers=7), "all 8 cores are at work: --augmentation standard"),
        (waiting(workers=7, augmentation="standard"), "--augmentation none"),
        (waiting(workers=7, augmentation="none"), "more of them would help"),
        (waiting(workers=7, read=(2.0, 0.1)), "faster disk"),
        (waiting(workers=0), "90% of the time; --loader-workers 1 prepares them meanwhile"),
        (made(workers=0), "the network limits"),
        (made(augment=(0.25, 0.25)), "the network limits"),
        (made(augment=(0.6, 0.6)), "try --loader-workers 2"),
        (waiting(workers=7, is_gpu=True), "--augmentation-device device augments on the GPU"),
        (waiting(workers=7, is_gpu=True, on_device=True, read=(2.0, 0.1)), "faster disk"),
        (made(parts=MADE.parts | {"augment": 0.2}), "augmenting takes 20%: --augmentation-device cpu"),
    ],
)
def test_one_sentence_says_what_limits(found: Profile, told: str) -> None:
    assert told in found.verdict
    assert found.table().endswith(found.verdict)


def test_rates_are_those_of_all_processes() -> None:
    assert made(processes=4).patches_per_second == 8.0
    assert MADE.network_share == pytest.approx(0.9)
