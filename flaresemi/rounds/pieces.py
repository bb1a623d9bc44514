"""The pieces of a round that take long: what each process of a launch does of them, on its own device."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flaresemi.compute.crew import Crew
from flaresemi.compute.precision import PrecisionName
from flaresemi.compute.sharding import Shard
from flaresemi.dataset import Dataset
from flaresemi.errors import ConfigError
from flaresemi.io.case_store import CaseStore
from flaresemi.plans import Plans, Stage, StagePlan
from flaresemi.pseudolabels.labeling import Labeler, LabelsCases
from flaresemi.pseudolabels.outside import OutsideTeacher
from flaresemi.pseudolabels.pool import PseudoLabels, label_pool
from flaresemi.pseudolabels.teachers import load_teachers
from flaresemi.training.config import TrackerName, TrainingConfig, local_batch_size
from flaresemi.training.semi_supervised import SemiSupervision
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainers import make_trainer
from flaresemi.training.validation import validate_cases
from flaresemi.workspace import ModelFolder

#: Looks at cases with the models that label: what it finds, by case.
Look = Callable[[LabelsCases, Sequence[str]], dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How the steps of a round are run.

    Attributes:
        device: The device of all computations.
        precision: The numeric precision of the networks.
        stop_requested: Polled during labeling and training; True saves and stops.
        crew: The processes that share labeling, training and validation; all else is done by the first.
        track: Who keeps the numbers of the students and of the round, see `TrainingConfig`; None: who kept those of the
            supervised training.
    """

    device: torch.device
    precision: PrecisionName = "auto"
    stop_requested: Callable[[], bool] = lambda: False
    crew: Crew = dataclasses.field(default_factory=Crew)
    track: TrackerName | None = None

    @property
    def part(self) -> Shard:
        """Of this process, of cases that the crew shares."""
        ranks = self.crew.ranks
        if ranks.world_size == 1:
            return Shard()
        return Shard(ranks.rank, ranks.world_size, helps=True, local_rank=ranks.local_rank)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelingModels:
    """The models of a round that label, before they are loaded.

    Attributes:
        fine: The folder of FINE's training.
        coarse: The folder of COARSE's training; None where FINE works on the whole body.
        plans: Of the workspace.
        stores: The prepared cases.
        median_volumes_ml: Of every organ, in labeled cases.
        labeling: What decides pseudo-labels besides the models.
    """

    fine: ModelFolder
    coarse: ModelFolder | None
    plans: Plans
    stores: Mapping[Stage, CaseStore]
    median_volumes_ml: Sequence[float]
    labeling: Mapping[str, bool]

    def labeler(self, how: Execution) -> Labeler:
        """Loads them."""
        return Labeler(
            load_teachers(self.fine, self.coarse, self.plans, **self.labeling),
            self.stores[Stage.FINE],
            self.stores[Stage.COARSE],
            self.median_volumes_ml,
            device=str(how.device),
            precision=how.precision,
            **self.labeling,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutsideModel:
    """The same of a teacher from outside.

    Attributes:
        model: Where it is.
        plans: Of the workspace.
        dataset: Whose images are labeled.
        fine_store: The same cases at FINE's spacing.
        tta: Whether mirrored images are labeled, too.
    """

    model: Path
    plans: Plans
    dataset: Dataset
    fine_store: CaseStore
    tta: bool

    def labeler(self, how: Execution) -> OutsideTeacher:
        """Loads it."""
        options = {"device": str(how.device), "precision": how.precision, "tta": self.tta}
        return OutsideTeacher(self.model, self.plans, self.dataset, self.fine_store, **options)


class Looks:
    """Looks of one teaching's models at cases, which the processes of a launch share.

    Args:
        how: Of this process, the first.
        teaching: The models.
        labeler: The models, where they are loaded already.
    """

    def __init__(
        self, how: Execution, teaching: LabelingModels | OutsideModel, labeler: LabelsCases | None = None
    ) -> None:
        self._how, self._teaching = how, teaching
        self._labeler: LabelsCases = labeler or teaching.labeler(how)
        self.made_with = self._labeler.made_with

    def __call__(self, look: Look, case_ids: Sequence[str]) -> dict[str, Any]:
        """What a function, which is at the top of a module, finds in each case; in the order of the cases."""
        crew = self._how.crew
        if crew.ranks.world_size == 1:
            return look(self._labeler, case_ids)
        parts = crew.together(self._how, look_part, self._teaching, look, case_ids)
        found = {case_id: each for part in parts for case_id, each in part.items()}
        return {case_id: found[case_id] for case_id in case_ids if case_id in found}


def look_part(
    how: Execution, teaching: LabelingModels | OutsideModel, look: Look, case_ids: Sequence[str]
) -> dict[str, Any]:
    """Looks at every n-th case."""
    part = how.part.of(case_ids)
    return look(teaching.labeler(how), part) if part else {}


def label_part(
    how: Execution,
    teaching: LabelingModels | OutsideModel,
    labels: PseudoLabels,
    pool: Sequence[str],
) -> bool:
    """Labels what others have not; False when it was asked to stop."""
    labeler: LabelsCases = teaching.labeler(how)
    return label_pool(labeler, labels, pool, shard=how.part, stop_requested=how.stop_requested)


def refuse_undivided(how: Execution, plan: StagePlan, config: TrainingConfig) -> None:
    """Checks, before days of labeling, that the batch of a student divides among the processes.

    Raises:
        ConfigError: it does not.
    """
    try:
        local_batch_size(config, plan.batch_size, how.crew.ranks.world_size)
    except ConfigError as problem:
        raise ConfigError(
            f"{plan.stage.value}: {problem.what}",
            fix="take another number of GPUs; or train the supervised models with another --batch-size, which is the "
            "students', too",
        ) from None


def train_part(how: Execution, task: TrainingTask, config: TrainingConfig, semi: SemiSupervision, resume: bool) -> bool:
    """Trains with the others, step by step; False when one of them was asked to stop."""
    ranks, asked = how.crew.ranks, how.stop_requested
    trainer = make_trainer(task, config, semi, device=how.device, ranks=ranks, stop_requested=asked)
    return trainer.fit(resume=resume)


def validate_part(how: Execution, task: TrainingTask, coarse_folder: ModelFolder, dataset: Dataset) -> None:
    """Validates the cases that others have not."""
    device, precision = how.device, how.precision
    validate_cases(task, coarse_folder, dataset, device=device, precision=precision, shard=how.part)
