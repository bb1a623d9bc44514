"""Who labels in a round of a chain: the models of the round before, or in the first round a model from outside."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from flaresemi.dataset import Dataset
from flaresemi.plans import Stage
from flaresemi.pseudolabels.outside import OutsideTeacher
from flaresemi.pseudolabels.teachers import made_with, teacher_files
from flaresemi.rounds.pieces import Execution, LabelingModels, OutsideModel
from flaresemi.rounds.state import RoundConfig
from flaresemi.training.task import PreparedDataset
from flaresemi.workspace import ModelFolder, Workspace


class Labelers:
    """The models that label the pool of one round; they are loaded when they are used.

    Args:
        workspace: Where they lie.
        prepared: The plans and the prepared cases.
        dataset: Whose images are labeled.
        fold: Of the chain.
        number: Of the round.
        config: The user's choices.
        execution: How they are run.
        median_ml: Finds, of every organ, the median volume in labeled cases.
    """

    def __init__(
        self,
        workspace: Workspace,
        prepared: PreparedDataset,
        dataset: Dataset,
        fold: str,
        number: int,
        config: RoundConfig,
        execution: Execution,
        median_ml: Callable[[], Sequence[float]],
    ) -> None:
        self.workspace = workspace
        self.prepared = prepared
        self.dataset = dataset
        self.fold = fold
        self.number = number
        self.config = config
        self.execution = execution
        self._median_ml = median_ml

    def former(self, stage: Stage) -> ModelFolder:
        """The models of the previous round; their weights are those that students start from."""
        return self.workspace.round_model(self.fold, self.number - 1, stage)

    @property
    def former_two(self) -> tuple[ModelFolder, ModelFolder | None]:
        """FINE's and, where FINE works inside its region, COARSE's."""
        return self.former(Stage.FINE), self.former(Stage.COARSE) if self.prepared.plans.two_stage else None

    @functools.cached_property
    def outside(self) -> OutsideTeacher | None:
        """Labels the pool in the first round, where the user names one."""
        return self.teaching.labeler(self.execution) if isinstance(self.teaching, OutsideModel) else None

    @property
    def teaching(self) -> LabelingModels | OutsideModel:
        """Who labels the pool."""
        if self.config.teacher is None or self.number > 1:
            return self.models(*self.former_two)
        model, store, tta = Path(self.config.teacher), self.prepared.stores[Stage.FINE], self.config.tta
        return OutsideModel(model=model, plans=self.prepared.plans, dataset=self.dataset, fine_store=store, tta=tta)

    def models(self, fine: ModelFolder, coarse: ModelFolder | None = None) -> LabelingModels:
        """Two of the workspace's own, to label as this round does."""
        return LabelingModels(
            fine=fine,
            coarse=coarse,
            plans=self.prepared.plans,
            stores=self.prepared.stores,
            median_volumes_ml=self._median_ml(),
            labeling=self.config.labeling,
        )

    @property
    def made_with(self) -> tuple[str, ...]:
        """Identifies the labeling models and options, see `teachers.made_with`."""
        return self.outside.made_with if self.outside else self._former_made_with

    @property
    def start(self) -> tuple[str, ...]:
        """Identifies the supervised models, where one from outside labels and their files are all there; else empty."""
        if self.outside is None or not all(path.is_file() for path in teacher_files(*self.former_two)):
            return ()
        return self._former_made_with

    @property
    def _former_made_with(self) -> tuple[str, ...]:
        fine, coarse = self.former_two
        return made_with(fine, coarse, **self.config.labeling)
