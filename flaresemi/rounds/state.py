"""The record of a round's progress: one JSON file, by which a killed round is resumed."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from flaresemi.errors import ConfigError, SelectionError
from flaresemi.files import content_hash
from flaresemi.labels import LabelSet
from flaresemi.plans import NetworkArgument
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.ranges import Few, Range, Seconds, check_ranges
from flaresemi.records import load_record, record_hash, save_record
from flaresemi.training.config import TrainingConfig, resolve
from flaresemi.training.mixing import Mixing
from flaresemi.training.runs import RunRecord

SCHEMA_VERSION = 2

STEPS = ("label", "select", "train COARSE", "train FINE", "validate")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """The user's settings for a round.

    Attributes:
        tta: Test-time augmentation: pseudo-labels come from the mean over mirrored images.
        ignore_contested: Voxels of a pseudo-label are left out where snapshots of the models that label disagree.
        selection: Which pseudo-labels are trained on.
        mixing: How students mix labeled with pseudo-labeled cases.
        start: Students start from `scratch` or from the weights of the `previous` round.
        length: Iterations of a student, relative to the supervised training of its stage.
        teacher: A model of nnU-Net or from another workspace that labels the pool in the first round, in the place of
            the supervised models.
        trainer: Who trains the students, see `TrainingConfig`; None: who trained the supervised models.
        trainer_settings: Of that trainer.
    """

    tta: bool = False
    ignore_contested: bool = False
    selection: SelectionRule = dataclasses.field(default_factory=SelectionRule)
    mixing: Mixing = dataclasses.field(default_factory=Mixing)
    start: Literal["scratch", "previous"] = "previous"
    length: Annotated[float, Range(0, 1000, above=True)] = 1.0
    teacher: str | None = None
    trainer: str | None = None
    trainer_settings: dict[str, NetworkArgument] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.teacher is not None and self.ignore_contested:
            raise ValueError("--teacher labels without snapshots: give --ignore-contested from the second round on")

    @property
    def labeling(self) -> dict[str, bool]:
        """What decides pseudo-labels besides the models."""
        return {"tta": self.tta, "ignore_contested": self.ignore_contested}

    def refuse_unfit(self, labels: LabelSet, *, where: object) -> None:
        """Checks that the dataset has what this asks for.

        Raises:
            ConfigError: voxels are to be left out, and no value stands for them.
        """
        if self.ignore_contested and labels.ignore is None:
            raise ConfigError(
                "--ignore-contested leaves voxels out, and dataset.json has no value for them",
                where=where,
                fix='add one to its labels ("ignore": 99, a value that no organ has), plan and train anew',
            )

    @property
    def chosen_trainer(self) -> dict[str, Any]:
        """The fields of a training's configuration that this replaces."""
        if self.trainer is None:
            return {"trainer_settings": self.trainer_settings} if self.trainer_settings else {}
        return {"trainer": self.trainer, "trainer_settings": self.trainer_settings}

    def student(self, supervised: RunRecord, teacher: Path, number: int) -> TrainingConfig:
        """The configuration of the supervised training, `length` times as long, from scratch or the teacher's weights.

        A shorter training has proportionally fewer intermediate validations, which would take much of its time. Each
        round has its own seed: with one seed for all, every round would sample the patches of the labeled cases that
        its initial weights were trained on.

        `auto` chooses the optimizer anew by that length, unless it was not the length alone that decided before:
        numbers that the user gave an optimizer stay with it, and a training that was lengthened has kept its own.

        Args:
            supervised: The record of that training.
            teacher: The weights that labeled.
            number: Of the round.
        """
        total = supervised.schedule.total_iterations
        iterations = max(round(total * self.length), 1)
        config = dataclasses.replace(
            supervised.config,
            epochs=None,
            time_budget_seconds=None,
            iterations=iterations,
            init_from=str(teacher) if self.start == "previous" else None,
            validations=math.ceil(supervised.config.validations * min(self.length, 1.0)),
            seed=supervised.config.seed + number,
            **self.chosen_trainer,
        )
        optimizer = supervised.recipe.optimizer
        has_numbers = (config.learning_rate, config.weight_decay, config.warmup_iterations) != (None, None, None)
        stays = has_numbers or resolve(config, total).optimizer != optimizer
        if stays and resolve(config, iterations).optimizer != optimizer:  # otherwise the record is that of before
            return dataclasses.replace(config, optimizer=optimizer)
        return config


#: The defaults; and the settings of FlareSemiSeg (FLARE22, doi 10.1007/978-3-031-23911-3_1), each stated, so that they
#: do not change with the defaults.
PRESETS = {
    "default": RoundConfig(),
    "flaresemiseg": RoundConfig(
        tta=False,
        selection=SelectionRule(
            rule="case", best_share=0.5, case_threshold=0.9, least_share=0.1, require_complete=False
        ),
        mixing=Mixing(pseudo_share=0.5, pseudo_augmentation="strong", paste_share=0.0, fine_tune=0.0),
        start="scratch",
        length=1.0,
    ),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """The progress of one step.

    Attributes:
        inputs: Hash of everything that determines its result, except the real cases.
        cases: Hash of the real cases that it depends on, as they were prepared; empty in states of older versions.
        seconds: Its running time, over all starts.
        done: Whether it was completed.
    """

    inputs: str
    cases: str = ""
    seconds: Seconds = 0.0
    done: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundState:
    """The progress of a round.

    Attributes:
        fold: The fold of the chain.
        round: Number of the round, from 1.
        config: The user's settings.
        made_with: Hashes of the checkpoints that label, see `teachers.made_with`.
        steps: The steps that were started, by name.
    """

    schema_version: int = SCHEMA_VERSION
    fold: str
    round: Few
    config: RoundConfig
    made_with: tuple[str, ...] = ()
    steps: dict[str, StepState]

    @property
    def next_step(self) -> str | None:
        """The first step that is not done; None when the round is complete."""
        return next((name for name in STEPS if name not in self.steps or not self.steps[name].done), None)

    def with_step(self, name: str, step: StepState) -> "RoundState":
        return dataclasses.replace(self, steps={**self.steps, name: step})


def load_state(path: Path) -> RoundState | None:
    """The state of a round; None when it was never started.

    Raises:
        SelectionError: the file is damaged.
    """
    return load_record(path, RoundState, error=SelectionError) if path.exists() else None


def save_state(path: Path, state: RoundState) -> None:
    save_record(path, state)


def file_hash(path: Path, fix: str = "finish the training that writes it: flaresemi_train --continue") -> str:
    """First 16 hex digits of the SHA-256 of a file.

    Raises:
        SelectionError: it is missing; the message ends with `fix`.
    """
    try:
        return content_hash(path)
    except FileNotFoundError:
        raise SelectionError(f"{path.name} is missing", where=path, fix=fix) from None


def inputs_hash(*parts: object) -> str:
    """Hash of a sequence of strings, records and nested tuples of them."""
    return record_hash(list(parts))
