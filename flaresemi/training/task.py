"""What is trained, on what, into which folder."""

import dataclasses
import logging
from collections.abc import Sequence

from flaresemi.errors import ConfigError, DatasetError
from flaresemi.io.case_store import CaseStore
from flaresemi.labels import LabelSet
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage, StagePlan, load_plans
from flaresemi.preprocessing.preprocessor import preprocessing_hash
from flaresemi.selection import ExportRecord
from flaresemi.training.mixing import Mixing
from flaresemi.workspace import ModelFolder, Workspace

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """A folder of label maps that a training learns from, besides the real ones.

    Attributes:
        folder: Where they lay when the training began.
        exported: What the folder says of itself; None where it says nothing.
        files: By unlabeled case that is used, the hash of its label map's file.
        mixing: How they are mixed with the labeled cases.
    """

    folder: str
    exported: ExportRecord | None
    files: dict[str, str]
    mixing: Mixing = dataclasses.field(default_factory=Mixing)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """One training: a stage on a fold.

    Attributes:
        plan: The stage's plan.
        body: How the patient is found in an image (goes into the checkpoint, for prediction).
        labels: The organs.
        channels: Names of the image channels.
        fold: Number of the fold, or 'all'.
        store: The stage's prepared cases.
        training: Names of the cases to train on.
        validation: Names of the held-out cases; empty for 'all'.
        folder: Where everything is written.
        taught_by: The label maps from elsewhere that it learns from; None without any.
    """

    plan: StagePlan
    body: str
    labels: LabelSet
    channels: tuple[str, ...]
    fold: str
    store: CaseStore
    training: tuple[str, ...]
    validation: tuple[str, ...]
    folder: ModelFolder
    taught_by: Teaching | None = None


def load_task(workspace: Workspace, stage: Stage, fold: str) -> TrainingTask:
    """Gathers what the earlier commands left in the workspace.

    Raises:
        FlaresemiError: plans, splits or prepared cases are missing or do not fit together.
    """
    if not workspace.plans.exists():
        raise ConfigError(
            "this dataset has no plans yet", where=workspace.plans, fix="run flaresemi_plan_and_preprocess first"
        )
    plans = load_plans(workspace.plans)
    plan = plans.stage(stage)
    split = load_splits(workspace.splits).fold(fold)
    store = CaseStore(workspace.preprocessed(stage))
    check_prepared(store, (*split.train, *split.validation), preprocessing_hash(plans.body, plan))
    if stage is Stage.COARSE and not plans.two_stage:
        logger.warning("the plans have one stage: COARSE is trained, but FINE works without it")
    return TrainingTask(
        plan=plan,
        body=plans.body,
        labels=plans.labels,
        channels=plans.channels,
        fold=fold,
        store=store,
        training=split.train,
        validation=split.validation,
        folder=workspace.model(fold, stage),
    )


def check_prepared(store: CaseStore, case_ids: Sequence[str], wanted: str) -> None:
    """Sees that cases are prepared as the plans want it.

    Args:
        wanted: The stage's `preprocessing_hash`.

    Raises:
        DatasetError: some are not; it names them.
    """
    missing = [case_id for case_id in case_ids if not store.has(case_id, wanted)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DatasetError(
            f"cases are not preprocessed for these plans: {', '.join(missing[:3])}{more}",
            where=store.folder,
            fix="run flaresemi_plan_and_preprocess again: it prepares what is missing",
        )
