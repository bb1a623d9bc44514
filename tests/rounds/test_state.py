"""The configuration that a student gets from the record of the supervised training."""

import dataclasses
from pathlib import Path

import pytest

from flaresemi.rounds.state import RoundConfig
from flaresemi.training.config import Recipe, TrainingConfig, resolve
from flaresemi.training.runs import RunRecord
from flaresemi.training.schedule import Decision


def recorded(config: TrainingConfig, recipe: Recipe, *decisions: Decision) -> RunRecord:
    """The record of a supervised training."""
    return RunRecord(
        command=(), trainer="Trainer", stage="FINE", fold="0", config=config, recipe=recipe, decisions=decisions,
        plan_hash="", training_cases=(), validation_cases=(), device="", processes=1, precision="fp32", versions={},
        git_revision=None, started="",
    )  # fmt: skip


def student(record: RunRecord, length: float) -> TrainingConfig:
    return RoundConfig(length=length, start="scratch").student(record, Path("teacher.pt"), 1)


def recipe_of(config: TrainingConfig) -> Recipe:
    assert config.iterations is not None
    return resolve(config, config.iterations)


@pytest.mark.parametrize(
    ("iterations", "length", "numbers"),
    [
        (60_000, 0.5, {"learning_rate": 0.02}),
        (60_000, 0.5, {"weight_decay": 1e-4}),
        (60_000, 0.5, {"warmup_iterations": 10}),
        (30_000, 2.0, {"learning_rate": 0.001}),
    ],
)
def test_numbers_of_an_optimizer_are_not_given_to_another(iterations: int, length: float, numbers: dict) -> None:
    config = TrainingConfig(iterations=iterations, **numbers)
    recipe = resolve(config, iterations)
    found = recipe_of(student(recorded(config, recipe), length))
    assert found.optimizer == recipe.optimizer
    assert {name: getattr(found, name) for name in numbers} == numbers


def test_a_student_of_a_lengthened_training_keeps_its_optimizer() -> None:
    config = TrainingConfig(iterations=60_000)
    recipe = dataclasses.replace(resolve(TrainingConfig(iterations=30_000), 30_000), total_iterations=60_000)
    for length in (1.0, 0.9):
        assert recipe_of(student(recorded(config, recipe), length)).optimizer == "muon"


def test_a_student_of_a_training_that_began_before_muon_keeps_adamw() -> None:
    config = TrainingConfig(iterations=2_000)
    recipe = dataclasses.replace(resolve(config, 2_000), optimizer="adamw")
    assert recipe_of(student(recorded(config, recipe), 0.5)).optimizer == "adamw"


def test_a_student_of_a_training_with_a_time_budget_keeps_its_optimizer() -> None:
    config = TrainingConfig(time_budget_seconds=3600.0)
    record = recorded(config, resolve(config, 48_000), Decision(iteration=100, total_iterations=52_000))
    found = student(record, 1.0)
    assert found.iterations == 52_000
    assert recipe_of(found).optimizer == "muon"


@pytest.mark.parametrize(("length", "expected"), [(1.0, "sgd"), (0.5, "muon")])
def test_the_length_decides_where_it_did_before(length: float, expected: str) -> None:
    config = TrainingConfig(iterations=60_000)
    found = student(recorded(config, resolve(config, 60_000)), length)
    assert recipe_of(found).optimizer == expected
    assert found.optimizer == "auto"  # so that rounds of before are recognized


def test_what_changes_nothing_is_not_written() -> None:
    config = TrainingConfig(iterations=2_000, learning_rate=0.003)
    assert student(recorded(config, resolve(config, 2_000)), 0.5).optimizer == "auto"
