import copy
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from flaresemi.compute.distributed import Ranks
from flaresemi.errors import CheckpointError, ConfigError, FlaresemiError
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.networks.compiling import compiled
from flaresemi.records import load_record
from flaresemi.training import trainer
from flaresemi.training.config import TrainingConfig
from flaresemi.training.history import Row, append_row, read_history
from flaresemi.training.monitoring import Monitor
from flaresemi.training.runs import RunRecord
from flaresemi.training.sampling import Batch
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer
from flaresemi.workspace import ModelFolder
from tests.training.conftest import LABELS, stage_plan

CPU = torch.device("cpu")
MakeTask = Callable[..., TrainingTask]


def numbers(task: TrainingTask) -> list[Row]:
    timing = ("seconds", "patches_per_second")
    return [{k: v for k, v in row.items() if k not in timing} for row in read_history(task.folder.history)]


class StopAfter:
    """Asks to stop once, after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self) -> bool:
        self.steps -= 1
        return self.steps == 0


def test_a_training_leaves_all_it_should(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    task = make_task()
    assert Trainer(task, quick_config, device=CPU, command=("flaresemi_train", "FINE", "0")).fit()
    for path in (task.folder.latest, task.folder.best, task.folder.curves, task.folder.run_record):
        assert path.is_file()
    assert any(task.folder.logs.iterdir())
    steps = [load_checkpoint(task.folder.snapshot(percent)).iteration for percent in (36, 66, 100)]
    assert steps == [4, 8, 12]
    rows = read_history(task.folder.history)
    assert [row["iteration"] for row in rows] == [4, 8, 12]
    assert set(rows[-1]["validation_dice"]) == {"left ball", "right ball"}  # type: ignore[call-overload]
    record = load_record(task.folder.run_record, RunRecord)
    assert record.recipe.total_iterations == 12
    assert record.training_cases == ("case_0", "case_1")
    assert record.versions["torch"] == importlib.metadata.version("torch")
    final = load_checkpoint(task.folder.final)
    assert final.training_state is None
    assert final.plan == task.plan
    assert final.labels == task.labels


def test_it_learns(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    task = make_task()
    config = dataclasses.replace(quick_config, iterations=120, iterations_per_epoch=40, learning_rate=2e-2)
    Trainer(task, config, device=CPU).fit()
    rows = read_history(task.folder.history)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3  # type: ignore[operator]
    assert rows[-1]["validation_mean"] > 0.5  # type: ignore[operator]


def test_the_same_seed_gives_the_same_losses(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    tasks = [make_task(name) for name in ("a", "b", "c")]
    for task, seed in zip(tasks, (5, 5, 6), strict=True):
        Trainer(task, dataclasses.replace(quick_config, seed=seed), device=CPU).fit()
    assert numbers(tasks[0]) == numbers(tasks[1])
    assert numbers(tasks[0]) != numbers(tasks[2])


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_a_stopped_and_resumed_training_equals_one_that_was_not(
    make_task: MakeTask, quick_config: TrainingConfig, steps: int
) -> None:
    whole, parts = make_task("whole"), make_task("parts")
    Trainer(whole, quick_config, device=CPU).fit()
    assert not Trainer(parts, quick_config, device=CPU, stop_requested=StopAfter(steps)).fit()
    assert load_checkpoint(parts.folder.latest).iteration == steps
    # A process that was killed after its last checkpoint has written history that the checkpoint does not know.
    with open(parts.folder.history, "a", encoding="utf-8") as file:
        file.write(json.dumps({"iteration": 12, "epoch": 3, "loss": 99.0}) + '\n{"iteration": 1')
    assert Trainer(parts, quick_config, device=CPU).fit(resume=True)
    assert numbers(parts) == numbers(whole)
    one, other = load_checkpoint(whole.folder.final).weights, load_checkpoint(parts.folder.final).weights
    for name, weights in one.items():
        torch.testing.assert_close(other[name], weights, rtol=0, atol=0)


def test_a_training_that_was_killed_before_it_saved_leaves_no_rows(
    make_task: MakeTask, quick_config: TrainingConfig
) -> None:
    task = make_task()
    task.folder.root.mkdir(parents=True)
    append_row(task.folder.history, {"iteration": 1, "epoch": 1, "loss": 9.0})
    Trainer(task, quick_config, device=CPU).fit()
    assert 9.0 not in [row["loss"] for row in read_history(task.folder.history)]


def test_a_finished_training_can_be_extended(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    task = make_task()
    Trainer(task, quick_config, device=CPU).fit()
    longer = dataclasses.replace(quick_config, iterations=20)
    assert Trainer(task, longer, device=CPU).fit(resume=True)
    assert load_checkpoint(task.folder.final).iteration == 20
    assert len(load_record(task.folder.run_record, RunRecord).continued) == 1


def test_a_training_is_not_made_shorter_than_it_is(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    task = make_task()
    assert not Trainer(task, quick_config, device=CPU, stop_requested=StopAfter(4)).fit()
    shorter = dataclasses.replace(quick_config, iterations=2)
    with pytest.raises(CheckpointError, match="has 4 iterations already, more than the 2 asked for"):
        Trainer(task, shorter, device=CPU).fit(resume=True)
    task.folder.run_record.unlink()
    with pytest.raises(CheckpointError, match="has 4 iterations already, more than the 2 asked for"):
        Trainer(task, shorter, device=CPU).fit(resume=True)
    assert not task.folder.final.exists()


def test_other_plans_are_refused(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    task = make_task()
    Trainer(task, quick_config, device=CPU, stop_requested=StopAfter(2)).fit()
    edited = dataclasses.replace(task, plan=stage_plan(spacing_zyx_mm=(2.5, 2.0, 2.0)))
    with pytest.raises(CheckpointError, match="other plans"):
        Trainer(edited, quick_config, device=CPU).fit(resume=True)
    assert load_checkpoint(task.folder.latest).iteration == 2


def test_a_fold_without_training_cases_is_refused(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    with pytest.raises(ConfigError, match="no training cases"):
        Trainer(make_task(training=()), quick_config, device=CPU)


def test_a_loss_that_is_no_number_stops_the_training(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    class Broken(Trainer):
        def training_step(self, network: torch.nn.Module, batch: object) -> torch.Tensor:
            return super().training_step(network, batch) * float("nan")  # type: ignore[arg-type]

    with pytest.raises(FlaresemiError, match="the loss is nan"):
        Broken(make_task(), quick_config, device=CPU).fit()


def test_a_state_from_before_the_loss_was_no_number_is_not_replaced(
    make_task: MakeTask, quick_config: TrainingConfig
) -> None:
    class Breaks(Trainer):
        def training_step(self, network: torch.nn.Module, batch: object) -> torch.Tensor:
            factor = float("nan") if self.iteration == 2 else 1.0
            return super().training_step(network, batch) * factor  # type: ignore[arg-type]

    task = make_task()
    assert not Breaks(task, quick_config, device=CPU, stop_requested=StopAfter(2)).fit()
    with pytest.raises(FlaresemiError, match="the loss is nan in the epoch up to iteration 3"):
        Breaks(task, quick_config, device=CPU, stop_requested=StopAfter(1)).fit(resume=True)
    assert load_checkpoint(task.folder.latest).iteration == 2


def test_weights_can_come_from_another_training(make_task: MakeTask, quick_config: TrainingConfig) -> None:
    first, second = make_task("first"), make_task("second")
    Trainer(first, quick_config, device=CPU).fit()
    starts: list[dict[str, torch.Tensor]] = []

    class Watched(Trainer):
        def training_step(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
            starts.append(copy.deepcopy(self.network.state_dict()))
            return super().training_step(network, batch)

    config = dataclasses.replace(quick_config, init_from=str(first.folder.final))
    Watched(second, config, device=CPU).fit()
    for name, weights in load_checkpoint(first.folder.final).weights.items():
        torch.testing.assert_close(starts[0][name], weights, rtol=0, atol=0)


def test_two_ranks_on_two_hosts_train_like_one_and_resume_exactly(
    make_task: MakeTask, quick_config: TrainingConfig, tmp_path: Path
) -> None:
    alone, together, parts = make_task("alone"), make_task("together"), make_task("parts")
    config = dataclasses.replace(quick_config, iterations=6, iterations_per_epoch=2, validations=0)
    Trainer(alone, config, device=CPU).fit()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("train_as_rank.py")
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1",
        str(script), str(together.store.folder), str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    hosts = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, encoding="utf-8") for _ in range(2)]
    messages = [host.communicate(timeout=280)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], messages
    assert "Grad strides" not in "".join(messages)
    one, two = numbers(alone), numbers(together)
    assert [row["iteration"] for row in two] == [2, 4, 6]
    # With a budget, the main process alone decides, whatever the clock of the other one says.
    budgeted = load_record(ModelFolder(tmp_path / "budgeted").run_record, RunRecord)
    assert budgeted.decisions
    assert load_checkpoint(ModelFolder(tmp_path / "budgeted").final).iteration == budgeted.schedule.total_iterations
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    assert numbers(parts) == two


class Noted(Ranks):
    """The first of two processes, of which the other one is not there: what they do together is noted."""

    done: ClassVar[list[str]] = []

    def barrier(self) -> None:
        self.done.append("barrier")

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        self.done.append("mean")
        return value

    def any(self, flag: bool) -> bool:
        self.done.append("any")
        return flag

    def share_gradients(self, network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        return network


def test_what_the_first_process_does_alone_is_waited_for_without_a_limit(
    make_task: MakeTask, quick_config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits elsewhere than at a barrier gives up after half an hour."""
    done = Noted.done
    done.clear()

    class Alone(Trainer):
        def _validate(self) -> Row:
            done.append("alone")
            return super()._validate()

        def _save_final(self) -> None:
            done.append("alone")
            super()._save_final()

    def add(monitor: Monitor, row: Row) -> None:
        done.append("alone")  # somebody's server may be slow

    monkeypatch.setattr(Monitor, "add", add)
    task, ranks = make_task(), Noted(rank=0, world_size=2)
    assert Alone(task, quick_config, device=CPU, ranks=ranks).fit()
    task.folder.final.unlink()
    assert Alone(task, quick_config, device=CPU, ranks=ranks).fit(resume=True)
    after = [following for one, following in itertools.pairwise(done) if one == "alone" != following]
    assert len(after) == 3 + 1 + 1  # epochs, the end, and the end again
    assert set(after) == {"barrier"}


@pytest.mark.parametrize("chosen", [True, False])
def test_the_network_is_told_the_layout_that_was_chosen(
    chosen: bool, make_task: MakeTask, quick_config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "trains_channels_last", lambda device, precision: chosen)
    assert Trainer(make_task(), quick_config, device=CPU).network.channels_last is chosen


def test_a_compiled_training_saves_what_a_plain_one_saves(
    make_task: MakeTask, quick_config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fast = make_task("plain"), make_task("compiled")
    Trainer(plain, quick_config, device=CPU).fit()
    # The graph is traced, but computed by torch itself: a C++ compiler would take a minute.
    monkeypatch.setattr(trainer, "compiled", functools.partial(compiled, backend="eager"))
    trained = Trainer(fast, dataclasses.replace(quick_config, compile=True), device=CPU)
    trained.fit()
    assert trained._runnable is not trained.network
    for path in (plain.folder.final, plain.folder.best):
        one, other = load_checkpoint(path), load_checkpoint(fast.folder.root / path.name)
        assert list(one.weights) == list(other.weights)
        for name, weights in one.weights.items():
            torch.testing.assert_close(other.weights[name], weights, rtol=1e-4, atol=1e-6)
    # A plain training goes on from a compiled one.
    longer = dataclasses.replace(quick_config, iterations=14)
    assert Trainer(fast, longer, device=CPU).fit(resume=True)


def test_a_step_that_no_memory_holds_is_refused_before_anything_is_made(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig
) -> None:
    task = make_task(plan=stage_plan(patch_zyx=(4096, 4096, 4096)))
    with pytest.raises(ConfigError, match=r"needs about .* GiB of memory, there are"):
        Trainer(task, quick_config, device=torch.device("cpu"))
    assert not task.folder.root.exists()


def test_where_sides_are_unknown_nothing_is_mirrored_left_to_right_and_it_is_said(
    make_task: MakeTask, quick_config: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task()
    names = (Label(name="ball", value=1), Label(name="right ball", value=2))
    unknown = dataclasses.replace(task, labels=LabelSet(labels=names, mirror_pairs=None))
    trainer = Trainer(unknown, dataclasses.replace(quick_config, mirror_axes=(0, 2)), device=CPU)
    (augmentation,) = trainer.sampler.augmentations.values()
    assert augmentation.mirror_axes == (0,)
    assert trainer.fit()
    assert load_checkpoint(task.folder.final).mirror_axes == (0,)
    assert load_checkpoint(task.folder.final).labels.mirror_pairs is None
    assert "right ball without a partner, so images are not mirrored left to right" in caplog.text


def test_an_organ_that_no_training_case_has_is_said_at_the_start(
    make_task: MakeTask, quick_config: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"training": ("right_only",), "validation": ("case_2",), "cautions": ("a group is divided",)}
    assert Trainer(make_task(**settings), quick_config, device=CPU).fit()
    assert "no training case of FINE has left ball: only cases that fold 0 holds out have it" in caplog.text
    assert "has right ball" not in caplog.text
    assert "a group is divided" in caplog.text
    caplog.clear()
    assert Trainer(make_task("whole"), quick_config, device=CPU).fit()
    assert "no training case" not in caplog.text


def test_a_trainer_with_another_network_than_the_plan_is_refused(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig
) -> None:
    """Its checkpoint could not be read: prediction builds the network of the plan."""

    class Other(Trainer):
        def build_network(self) -> torch.nn.Module:
            return torch.nn.Conv3d(1, 3, 1)

    with pytest.raises(ConfigError, match="builds another network than the plan says"):
        Other(make_task(), quick_config, device=CPU)


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_the_averaged_network_has_the_newest_weights_also_after_resuming(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, decay: float
) -> None:
    config = dataclasses.replace(quick_config, ema_decay=decay)
    seen = []

    class Watching(Trainer):
        def after_step(self) -> None:
            weights = self.averaged_network.state_dict()
            seen.append(all(torch.equal(weights[name], value) for name, value in self.optimization.weights.items()))

    task = make_task()
    assert not Watching(task, config, device=CPU, stop_requested=StopAfter(3)).fit()
    resumed = Watching(task, config, device=CPU)
    assert resumed.fit(resume=True)
    assert len(seen) == resumed.iteration
    assert all(seen)
    assert not any(parameter.requires_grad for parameter in resumed.averaged_network.parameters())
    assert resumed.network.training


def test_patients_are_mirrored_where_their_sides_are_alike(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig
) -> None:
    """Two balls that change places are alike; where they do not, one is always to the right of the other."""
    three = ("case_0", "case_1", "case_2")
    alike = Trainer(make_task("alike", training=three, validation=()), quick_config, device=CPU)
    assert alike.mirror_axes == (2,)
    task = make_task("other", training=three, validation=(), labels=dataclasses.replace(LABELS, mirror_pairs=()))
    assert Trainer(task, quick_config, device=CPU).mirror_axes == ()
    assert Trainer(task, dataclasses.replace(quick_config, mirror_axes=(2,)), device=CPU).mirror_axes == (2,)


def test_checkpoints_know_what_labeled_cases_tell_of_pieces(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig
) -> None:
    task = make_task(training=("case_0", "case_1", "case_2"), validation=())
    assert Trainer(task, quick_config, device=CPU).fit()
    final = load_checkpoint(task.folder.final)
    assert final.keep_largest == ("left ball", "right ball")
    assert final.touching == ()
