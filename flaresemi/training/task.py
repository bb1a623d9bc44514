"""A training task: the stage, the fold, the cases and the folder."""

import collections
import dataclasses
import logging
from collections.abc import Container, Iterator, Sequence

import numpy as np

from flaresemi.appearance import Norm, norms_of
from flaresemi.dataset import Dataset
from flaresemi.errors import CheckpointError, ConfigError, DatasetError, listed
from flaresemi.io.case_store import CaseStore
from flaresemi.labels import LabelSet
from flaresemi.planning.preparation import case_versions
from flaresemi.planning.present_plans import kept_fingerprint
from flaresemi.planning.splits import Splits, load_splits
from flaresemi.plans import DatasetFingerprint, Plans, Stage, StagePlan, load_plans
from flaresemi.preprocessing.preprocessor import preprocessing_hash
from flaresemi.records import record_hash
from flaresemi.selection import ExportRecord
from flaresemi.sides import mirroring_caution
from flaresemi.training.mixing import Mixing
from flaresemi.workspace import ModelFolder, Workspace

logger = logging.getLogger(__name__)

#: An organ that vanishes in more than this share of the training cases that have it is told. Chosen.
VANISHING_SHARE = 0.1


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
class Origin:
    """The origin of a training, compared by whoever resumes it or builds on its weights.

    Attributes:
        meaning: Hash of the organs and their sides, the channels and how the patient is found.
        training: By case that is trained on, the version that it was prepared from; empty where that is not known.
        held_out: The same of the held-out cases.
    """

    meaning: str
    training: dict[str, str]
    held_out: dict[str, str]

    def refuse_other(self, now: "Origin", *, where: object, goes_on: bool) -> None:
        """Checks that a training that stands on this may be taken for one that stands on what there is now.

        Held-out cases may have been corrected: what was trained does not depend on them.

        Args:
            goes_on: It is to be trained on, so that the folds must be the same; otherwise its weights are used, and it
                is enough that no case that judges them was trained on.

        Raises:
            CheckpointError: it may not; the message says what differs.
        """
        if self.meaning != now.meaning:
            what = "this training was started with other organs, channels or another body in plans.json"
            raise CheckpointError(what, where=where, fix=_BEGIN_ANEW)
        seen = sorted(self.training.keys() & now.held_out.keys())
        same = self.training.keys() == now.training.keys() and self.held_out.keys() == now.held_out.keys()
        if seen or (goes_on and not same):
            raise other_fold(seen, where)
        changed = sorted(
            case_id
            for case_id, version in self.training.items()
            if version and now.training.get(case_id, "") not in ("", version)
        )
        if changed:
            raise CheckpointError(
                f"{len(changed)} case(s) that this training began with are others now: {listed(changed)}",
                where=where,
                fix=_BEGIN_ANEW,
            )


def other_fold(seen: Sequence[str], where: object) -> CheckpointError:
    """The error for folds that have changed under a training.

    Args:
        seen: Cases that it was trained on and that would judge it now.
    """
    judged = f", and would be judged by cases that it was trained on: {listed(seen)}" if seen else ""
    return CheckpointError(f"this training was started with other folds{judged}", where=where, fix=_BEGIN_ANEW)


_BEGIN_ANEW = "put the files back as they were, or train this anew with --restart"


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
        made_from: What it stands on; None where that is not known.
        cautions: What is to be said of the fold before it is trained.
        norms: What the labeled cases look like, which predictions are compared with.
        dataset: Its name.
        purpose: Of a round or of the final models, in words; empty: the supervised training of the fold.
        unlabeled: Names of the unlabeled cases that may be learned from; None where the dataset is not at hand.
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
    made_from: Origin | None = None
    cautions: tuple[str, ...] = ()
    norms: tuple[Norm, ...] = ()
    dataset: str = ""
    purpose: str = ""
    unlabeled: tuple[str, ...] | None = None

    @property
    def title(self) -> str:
        """What is trained, as nothing else in the workspace is called."""
        return f"{self.plan.stage.value} fold {self.fold}" + (f", {self.purpose}" if self.purpose else "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDataset:
    """The results of planning and preparation in a workspace, loaded once for all trainings on it.

    Attributes:
        workspace: Where it lies.
        plans: Of both stages.
        splits: The folds.
        fingerprint: Of the labeled cases; None where it is not at hand: a training needs it for no more than checks.
        stores: The prepared cases of each stage. Whoever opens a case through them gets one version of it only.
    """

    workspace: Workspace
    plans: Plans
    splits: Splits
    fingerprint: DatasetFingerprint | None
    stores: dict[Stage, CaseStore]

    def task(self, stage: Stage, fold: str, dataset: Dataset | None = None) -> TrainingTask:
        """The training of a stage on a fold.

        Args:
            dataset: With all decisions about bad cases applied; None where it is not at hand.

        Raises:
            FlaresemiError: there is no such fold, or its cases are not prepared for the plans.
        """
        plan, split, store = self.plans.stage(stage), self.splits.fold(fold), self.stores[stage]
        check_prepared(store, (*split.train, *split.validation), preprocessing_hash(self.plans.body, plan))
        if stage is Stage.COARSE and not self.plans.two_stage:
            logger.warning("the plans have one stage: COARSE is trained, but FINE works without it")
        labels = self.plans.labels
        return TrainingTask(
            plan=plan,
            body=self.plans.body,
            labels=labels,
            channels=self.plans.channels,
            fold=fold,
            store=store,
            training=split.train,
            validation=split.validation,
            folder=self.workspace.model(fold, stage),
            made_from=Origin(
                meaning=record_hash([self.plans.body, labels.meanings, labels.mirror_pairs, self.plans.channels]),
                training=case_versions(split.train, self.workspace),
                held_out=case_versions(split.validation, self.workspace),
            ),
            cautions=(*self.splits.divided_groups(fold), *self._vanishing(store, stage, {*split.train})),
            norms=() if self.fingerprint is None else norms_of(self.fingerprint.cropped(self.plans.body)),
            dataset=self.plans.dataset_name,
            unlabeled=None if dataset is None else dataset.learnable(split.validation),
        )

    def _vanishing(self, store: CaseStore, stage: Stage, case_ids: Container[str]) -> Iterator[str]:
        """Organs that some of the cases that have them lose at the stage's spacing, in words; none that all lose."""
        if self.fingerprint is None:
            return
        have, lost = collections.Counter[str](), collections.Counter[str]()
        for case in self.fingerprint.cases:
            if case.case_id not in case_ids:
                continue
            counts = self.plans.labels.per_organ(np.array([0, *store.record(case.case_id).voxels_per_label]))
            left = dict(zip(self.plans.labels.names, counts.tolist(), strict=True))
            for name, voxels in zip(self.fingerprint.labels.names, case.voxels_per_label, strict=True):
                if voxels and name in left:
                    have[name] += 1
                    lost[name] += not left[name]
        for name, cases in lost.items():
            if VANISHING_SHARE * have[name] < cases < have[name]:
                yield (
                    f"at the spacing of {stage.value}, nothing is left of {name} in {cases} of {have[name]} training "
                    "cases that have it: it is background there"
                )


def load_prepared(workspace: Workspace) -> PreparedDataset:
    """Loads what the earlier commands left in the workspace.

    Raises:
        FlaresemiError: plans or splits are missing, or do not fit together.
    """
    if not workspace.plans.exists():
        raise ConfigError(
            "this dataset has no plans yet", where=workspace.plans, fix="run flaresemi_plan_and_preprocess first"
        )
    plans = load_plans(workspace.plans)
    fingerprint = kept_fingerprint(workspace, "what is predicted later cannot be compared with the labeled cases")
    if fingerprint is not None and fingerprint.hash == plans.fingerprint_hash:
        plans.refuse_other_labels(fingerprint.labels, where=workspace.plans)
    return PreparedDataset(
        workspace=workspace,
        plans=plans,
        splits=load_splits(workspace.splits),
        fingerprint=fingerprint,
        stores={stage: CaseStore(workspace.preprocessed(stage)) for stage in Stage},
    )


def load_task(workspace: Workspace, stage: Stage, fold: str, dataset: Dataset | None = None) -> TrainingTask:
    """The training of a stage on a fold, by what the earlier commands left in the workspace.

    Args:
        dataset: See `PreparedDataset.task`.

    Raises:
        FlaresemiError: plans, splits or prepared cases are missing or do not fit together.
    """
    return load_prepared(workspace).task(stage, fold, dataset)


def unlabeled_cases(task: TrainingTask) -> tuple[str, ...]:
    """The names of the unlabeled cases to learn from that are prepared by the same plans as the labeled ones.

    The store alone does not tell them: it has test cases, and keeps those that were left out or removed since.

    Raises:
        DatasetError: they are not known, the dataset not being at hand.
    """
    if task.unlabeled is None:
        raise DatasetError(
            "this training learns from unlabeled cases, and which these are is not known without the dataset",
            where=task.store.folder,
            fix="put the dataset where -d says",
        )
    wanted = task.store.record(task.training[0]).preprocessing_hash
    records = map(task.store.record, sorted({*task.unlabeled} & {*task.store.case_ids()}))
    return tuple(record.case_id for record in records if not record.has_label and record.preprocessing_hash == wanted)


def check_prepared(store: CaseStore, case_ids: Sequence[str], wanted: str) -> None:
    """Checks that cases are prepared as the plans want it.

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


def tell_gaps(task: TrainingTask, *, mirrors: bool, enabled: bool) -> None:
    """Warns of what a training cannot teach or judge: divided groups, unknown sides, organs that none of its cases has.

    Args:
        mirrors: Images are to be mirrored left to right.
        enabled: False on all ranks but the first: nothing is said then.
    """
    if not enabled:
        return
    for told in task.cautions:
        logger.warning("%s", told)
    sides = mirroring_caution(task.labels.names, task.labels.mirror_pairs)
    if mirrors and sides is not None:
        logger.warning("%s; %s", *sides)
    lacking = set(task.labels.names) - _taught(task, task.training)
    held_out = _taught(task, task.validation) & lacking
    for name in (name for name in task.labels.names if name in lacking):
        where = f": only cases that fold {task.fold} holds out have it" if name in held_out else ""
        logger.warning(
            "no training case of %s has %s%s; this network will never segment it", task.plan.stage.value, name, where
        )


def _taught(task: TrainingTask, case_ids: Sequence[str]) -> set[str]:
    """The organs that at least one of these cases has and annotates."""
    found: set[str] = set()
    for record in map(task.store.record, case_ids):
        if record.supervised:
            voxels = task.labels.per_organ(np.array([0, *record.voxels_per_label]))
            found |= {task.labels.names[organ - 1] for organ in record.supervised if voxels[organ - 1]}
    return found
