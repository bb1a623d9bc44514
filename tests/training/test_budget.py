"""A training that shall take a given time: it ends in time, at the end of its schedule, whatever the machine does."""

import dataclasses
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from flaresemi.compute.distributed import Ranks
from flaresemi.compute.metering import RunningTime
from flaresemi.errors import CheckpointError
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.records import load_record
from flaresemi.training.budget import TIMED_STEPS, TimeBudget
from flaresemi.training.config import Recipe, TrainingConfig, resolve
from flaresemi.training.history import read_history
from flaresemi.training.runs import RunRecord
from flaresemi.training.sampling import Batch
from flaresemi.training.schedule import Schedule, learning_rate
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer

CPU = torch.device("cpu")
MakeTask = Callable[..., TrainingTask]
BUDGET = 600.0


def recipe_of(iterations: int) -> Recipe:
    return resolve(TrainingConfig(time_budget_seconds=BUDGET), iterations)


@dataclasses.dataclass
class FakeClock:
    """A clock that only moves when it is told to."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds


def simulated(
    pace: Callable[[float], float], *, validation: float = 2.0, checkpoint: float = 0.5, budget: float = BUDGET
) -> tuple[float, Schedule]:
    """Seconds and schedule of a training whose steps take `pace(spent)`, as `Trainer` goes through it."""
    clock = FakeClock()
    watch = TimeBudget(budget, clock)

    def step() -> float:
        clock.pass_(pace(watch.spent_seconds))
        return watch.spent_seconds

    steps = (step() for _ in range(TIMED_STEPS))
    schedule = watch.first_schedule(watch.first_estimate(steps, Ranks()), recipe_of)
    for iteration in itertools.count(1):
        step()
        if schedule.percents(iteration, (36, 66, 100)):
            with watch.aside("checkpoint"):
                clock.pass_(checkpoint)
        if schedule.ends_epoch(iteration):
            validates = schedule.is_validating(iteration, 10)
            with watch.aside("validation" if validates else "epoch"):
                clock.pass_(validation if validates else 0.1)
        if iteration >= schedule.total_iterations:
            break
        if total := watch.decide(schedule, iteration, 10):
            schedule = schedule.decided(iteration, total)
    clock.pass_(checkpoint)
    return watch.spent_seconds, schedule


PACES: dict[str, Callable[[float], float]] = {
    "even": lambda spent: 0.5,
    "slow start": lambda spent: 4.0 if spent < BUDGET / 10 else 0.5,
    "very slow first steps": lambda spent: 100.0 if spent < BUDGET / 4 else 0.5,
    "slow second half": lambda spent: 0.5 if spent < BUDGET / 2 else 1.5,
    "ten times slower near the end": lambda spent: 0.5 if spent < 0.9 * BUDGET else 5.0,
    "ten times slower at the very end": lambda spent: 0.5 if spent < 0.97 * BUDGET else 5.0,
    "ten times faster near the end": lambda spent: 0.5 if spent < 0.9 * BUDGET else 0.05,
    "stalls": lambda spent: 20.0 if spent % 100 < 0.5 else 0.5,
    "turns": lambda spent: 0.5 if int(spent / 40) % 2 else 2.0,
    "fast": lambda spent: 0.02,
    "few long steps": lambda spent: 25.0,
}


@pytest.mark.parametrize("name", PACES)
def test_the_budget_holds_and_the_schedule_is_complete(name: str) -> None:
    seconds, schedule = simulated(PACES[name])
    assert seconds == pytest.approx(BUDGET, rel=0.10)
    end = schedule.total_iterations
    assert schedule.place(end) == schedule.recipe.total_iterations
    places = [schedule.place(iteration) for iteration in range(end + 1)]
    assert all(before < after for before, after in itertools.pairwise(places))
    assert schedule.epochs_done(end) == schedule.epochs
    found = [percent for i in range(1, end + 1) for percent in schedule.percents(i, (36, 66, 100))]
    assert found == [36, 66, 100]
    assert len(schedule.decisions) <= 110


def test_long_validations_are_counted() -> None:
    seconds, _ = simulated(lambda spent: 0.5, validation=25.0, checkpoint=3.0)
    assert seconds == pytest.approx(BUDGET, rel=0.10)


def test_validations_that_do_not_fit_do_not_end_the_schedule_at_once() -> None:
    """Steps pass several of them then, and have one at most."""
    seconds, schedule = simulated(lambda spent: 20.0 if spent < 300 else 35.0, validation=50.0, checkpoint=3.0)
    assert seconds == pytest.approx(BUDGET, rel=0.10)
    assert schedule.learning_rate(schedule.total_iterations - 1) < 0.5 * schedule.recipe.learning_rate


def test_a_first_step_that_starts_the_loader_does_not_use_up_the_schedule() -> None:
    steps = iter([40.0, 4.0, 40.0])  # two are timed beforehand
    _, schedule = simulated(lambda spent: next(steps, 4.0))
    assert schedule.place(10) < 0.12 * schedule.recipe.total_iterations


def test_a_stall_does_not_use_up_the_schedule() -> None:
    _, schedule = simulated(lambda spent: 20.0 if 200 < spent < 210 else 0.5)
    places = [schedule.place(iteration) / schedule.recipe.total_iterations for iteration in range(400, 600)]
    assert max(after - before for before, after in itertools.pairwise(places)) < 3 / schedule.total_iterations


def test_without_decisions_the_place_is_the_iteration() -> None:
    recipe = recipe_of(777)
    schedule = Schedule(recipe)
    for iteration in (0, 1, 37, 38, 39, 500, 776):
        assert schedule.learning_rate(iteration) == learning_rate(recipe, iteration)
        assert schedule.place(iteration) == iteration
    ends = [iteration for iteration in range(1, 778) if schedule.ends_epoch(iteration)]
    assert ends == [*range(38, 777, 38), 777]
    assert [i for i in range(1, 778) if schedule.percents(i, (36, 66, 100))] == [280, 513, 777]


def test_the_rate_does_not_jump_where_something_is_decided() -> None:
    before = Schedule(recipe_of(1000))
    after = before.decided(400, 600).decided(500, 2000)
    assert after.place(400) == before.place(400)
    assert after.place(500) == before.decided(400, 600).place(500)
    assert after.place(2000) == 1000


# In the trainer ---------------------------------------------------------------------------------------------------


class Timed(Trainer):
    """A trainer whose steps take `pace(seconds so far)` on a clock of its own."""

    time_of_step: Callable[[float], float] = staticmethod(lambda spent: 1.0)

    def build_stopwatch(self) -> AbstractContextManager[Callable[[], float]]:
        self.fake = FakeClock()
        return nullcontext(self.fake)

    def training_step(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        self.fake.pass_(self.time_of_step(self.budget.spent_seconds))
        return super().training_step(network, batch)


def timed(
    task: TrainingTask, config: TrainingConfig, pace: Callable[[float], float], steps: int | None = None, **more: object
) -> Timed:
    """A trainer with this pace, which is asked to stop after so many steps."""
    left = itertools.count(1)
    trainer = Timed(task, config, device=CPU, stop_requested=lambda: next(left) == steps, **more)  # type: ignore[arg-type]
    trainer.time_of_step = pace
    return trainer


@pytest.fixture
def budgeted(quick_config: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(
        quick_config, iterations=None, iterations_per_epoch=10, time_budget_seconds=60.0, validations=2
    )


def late(spent: float) -> float:
    return 0.8 if spent < 30 else 2.0


def test_a_training_ends_in_time_with_all_that_belongs_to_it(make_task: MakeTask, budgeted: TrainingConfig) -> None:
    task = make_task()
    trainer = timed(task, budgeted, late)
    assert trainer.fit()
    assert trainer.budget.spent_seconds == pytest.approx(60, rel=0.10)
    record = load_record(task.folder.run_record, RunRecord)
    assert record.decisions
    final = load_checkpoint(task.folder.final)
    assert final.iteration == final.total_iterations == record.schedule.total_iterations
    for percent, share in ((36, 0.36), (66, 0.66)):
        iteration = load_checkpoint(task.folder.snapshot(percent)).iteration
        before, after = (record.schedule.place(i) / record.recipe.total_iterations for i in (iteration - 1, iteration))
        assert before < share <= after < share + 0.06
    rows = read_history(task.folder.history)
    assert rows[-1]["epoch"] == record.schedule.epochs
    assert len([row for row in rows if "validation_mean" in row]) == 2 and "validation_mean" in rows[-1]
    rates = [row["learning_rate"] for row in rows]
    assert rates[-1] < 0.1 * max(rates)  # type: ignore[operator, type-var]


@pytest.mark.parametrize("steps", [5, 30])
def test_a_training_that_is_stopped_and_resumed_keeps_the_budget(
    make_task: MakeTask, budgeted: TrainingConfig, steps: int
) -> None:
    task = make_task()
    first = timed(task, budgeted, late, steps)
    assert not first.fit()
    spent = first.budget.spent_seconds
    decided = load_record(task.folder.run_record, RunRecord).decisions
    second = timed(task, budgeted, late)
    assert second.fit(resume=True)
    assert second.budget.spent_seconds == pytest.approx(60, rel=0.10)
    assert second.fake.seconds - 1000 == pytest.approx(60 - spent, abs=6)
    record = load_record(task.folder.run_record, RunRecord)
    assert record.decisions[: len(decided)] == decided
    assert load_checkpoint(task.folder.final).iteration == record.schedule.total_iterations


def test_a_killed_training_repeats_what_had_been_decided(make_task: MakeTask, budgeted: TrainingConfig) -> None:
    """Its checkpoint is older than the last decisions; the losses and rates after it are those that there were."""

    class Killed(Exception):
        pass

    task = make_task()
    assert not timed(task, budgeted, late, 20).fit()

    def deadly(spent: float) -> float:
        if spent > 50:
            raise Killed
        return late(spent)

    killed = timed(task, budgeted, deadly)
    with pytest.raises(Killed):
        killed.fit(resume=True)
    record = load_record(task.folder.run_record, RunRecord)
    assert record.decisions[-1].iteration > 20 == load_checkpoint(task.folder.latest).iteration
    last = record.decisions[-1].iteration
    seen = {row["iteration"]: (row["loss"], row["learning_rate"]) for row in read_history(task.folder.history)
            if row["iteration"] <= last}  # type: ignore[operator]  # fmt: skip
    resumed = timed(task, budgeted, lambda spent: 0.3)  # on another machine
    assert resumed.fit(resume=True)
    now = {row["iteration"]: (row["loss"], row["learning_rate"]) for row in read_history(task.folder.history)}
    assert len(seen) > 4
    assert all(now[iteration] == numbers for iteration, numbers in seen.items())
    decisions = load_record(task.folder.run_record, RunRecord).decisions
    assert decisions[: len(record.decisions)] == record.decisions


def test_a_lost_record_loses_no_decision(make_task: MakeTask, budgeted: TrainingConfig) -> None:
    task = make_task()
    assert not timed(task, budgeted, late, 40).fit()
    before = load_record(task.folder.run_record, RunRecord)
    task.folder.run_record.unlink()
    assert timed(task, budgeted, late).fit(resume=True)
    after = load_record(task.folder.run_record, RunRecord)
    assert after.recipe == before.recipe
    assert after.decisions[: len(before.decisions)] == before.decisions != ()


def test_a_training_from_before_keeps_its_number_of_steps(
    make_task: MakeTask, budgeted: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Its checkpoint does not say how much of the budget was spent."""
    task = make_task()
    trainer = timed(task, budgeted, lambda spent: 1.0, 5)
    assert not trainer.fit()
    content = torch.load(task.folder.latest, weights_only=True)
    del content["training_state"]["budget"]
    torch.save(content, task.folder.latest)
    plain = json.loads(task.folder.run_record.read_text(encoding="utf-8"))
    plain["recipe"]["total_iterations"] = 9
    del plain["decisions"]
    task.folder.run_record.write_text(json.dumps(plain), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert timed(task, budgeted, lambda spent: 1.0).fit(resume=True)
    assert load_checkpoint(task.folder.final).iteration == 9
    assert "keeps its number of steps" in caplog.text


def test_a_damaged_state_of_the_budget_is_told(make_task: MakeTask, budgeted: TrainingConfig) -> None:
    task = make_task()
    assert not timed(task, budgeted, lambda spent: 1.0, 5).fit()
    content = torch.load(task.folder.latest, weights_only=True)
    content["training_state"]["budget"] = "{"
    torch.save(content, task.folder.latest)
    with pytest.raises(CheckpointError, match="budget"):
        timed(task, budgeted, lambda spent: 1.0).fit(resume=True)


# The clock ----------------------------------------------------------------------------------------------------------


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    script = (
        "import time\nfrom flaresemi.compute.metering import RunningTime\n"
        "with RunningTime(asleep_seconds=0.5) as seconds:\n    start = time.monotonic()\n"
        "    print('ready', flush=True)\n    end = start + 1.6\n"
        "    while time.monotonic() < end: sum(range(1000))\n    print(seconds(), time.monotonic() - start)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGCONT)
    running, passed = map(float, process.communicate(timeout=60)[0].split())
    assert passed - running == pytest.approx(1.2, abs=0.4)


def test_time_that_is_waited_counts() -> None:
    with RunningTime(asleep_seconds=0.3) as seconds:
        time.sleep(0.7)
        assert seconds() == pytest.approx(0.7, abs=0.2)
