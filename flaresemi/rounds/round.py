"""One round of a chain: label the pool, select, train COARSE and FINE on labels and pseudo-labels, validate."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from flaresemi.compute.sharding import Shard
from flaresemi.dataset import Dataset
from flaresemi.errors import ConfigError, SelectionError
from flaresemi.files import clear_folder
from flaresemi.io.case_store import LabelStore
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.planning.preparation import refuse_changed
from flaresemi.plans import Stage, load_fingerprint
from flaresemi.pseudolabels.calibration import Observations
from flaresemi.pseudolabels.pool import PseudoLabels, label_pool, observe, write_reliable_series
from flaresemi.pseudolabels.selecting import labeled_volumes, select, volumes_ml
from flaresemi.records import load_record, record_hash, save_record
from flaresemi.rounds.expecting import with_expected_dice
from flaresemi.rounds.labelers import Labelers
from flaresemi.rounds.pieces import Execution, Looks, label_part, refuse_undivided, train_part, validate_part
from flaresemi.rounds.protection import Protection
from flaresemi.rounds.reviewed import RoundReviews
from flaresemi.rounds.state import STEPS, RoundConfig, RoundState, file_hash, inputs_hash, load_state
from flaresemi.rounds.steps import Step, run_step
from flaresemi.selection import Selection, save_scores
from flaresemi.training.config import TrainingConfig
from flaresemi.training.resuming import has_state
from flaresemi.training.runs import RunRecord, refuse_foreign_files, refuse_other_origin
from flaresemi.training.semi_supervised import SemiSupervision
from flaresemi.training.task import TrainingTask, load_prepared
from flaresemi.training.validation import begin_validation, conclude_validation
from flaresemi.unfinished import remove_leftovers
from flaresemi.workspace import RoundFolder, Workspace

logger = logging.getLogger(__name__)


class Round:
    """A round of the chain of one fold. Running it again is safe: a step whose inputs have not changed is kept.

    The chain never sees the labels of its fold's held-out cases: its models were trained without them, and so are the
    students. Plans, splits and the versions of the prepared cases are read once; a case that is prepared again in the
    middle of a round is refused when it is opened.

    Args:
        workspace: Planned and prepared, with the fold trained (round 0 is the supervised training).
        dataset: With all decisions about bad cases applied.
        fold: The chain's fold.
        number: From 1.
        config: The user's choices.
        execution: How the steps are run.
        peers: All folds whose chains take part, including this one: scores are calibrated on the held-out cases of
            all of them. Default: this fold alone.

    Attributes:
        chosen: Where the selection lies, with the decisions of persons that it follows: the round's folder, or one
            apart.

    Raises:
        FlaresemiError: there are no unlabeled cases, there is no such fold, or labeled cases have changed since they
            were prepared.
    """

    def __init__(
        self,
        workspace: Workspace,
        dataset: Dataset,
        fold: str,
        number: int,
        config: RoundConfig,
        execution: Execution,
        *,
        peers: Sequence[str] | None = None,
    ) -> None:
        if not dataset.unlabeled:
            raise SelectionError(
                "the dataset has no unlabeled cases",
                where=dataset.root,
                fix="put them into unlabeled_image or imagesUn and run flaresemi_plan_and_preprocess again",
            )
        self.prepared = load_prepared(workspace)
        self.plans = self.prepared.plans
        config.refuse_unfit(self.plans.labels, where=workspace.plans)
        self.split = self.prepared.splits.fold(fold)
        refuse_changed(dataset, dataset.labeled, self.plans, workspace)
        self.fingerprint = self.prepared.fingerprint or load_fingerprint(workspace.fingerprint)  # raises
        self.workspace = workspace
        self.dataset = dataset
        self.fold = fold
        self.number = number
        self.config = config
        self.execution = execution
        self.peers = (fold,) if peers is None else tuple(peers)
        self.folder = workspace.round(fold, number)
        self.pool = tuple(case.id for case in dataset.unlabeled)
        self.stages = (Stage.COARSE, Stage.FINE) if self.plans.two_stage else (Stage.FINE,)
        self.labels = PseudoLabels(self.folder, {stage: self.prepared.stores[stage] for stage in self.stages})
        self.labelers = Labelers(
            workspace, self.prepared, dataset, fold, number, config, execution, lambda: self._protection.median_ml
        )
        self.chosen = self.folder
        self.reviews = RoundReviews(workspace, dataset, self.plans.labels, self.labels)
        self._labels_hash: str | None = None
        self._untaught: dict[str, str] | None = None

    @functools.cached_property
    def tasks(self) -> Mapping[Stage, TrainingTask]:
        """The students' training tasks, by stage.

        Raises:
            FlaresemiError: labeled cases are not prepared.
        """
        found = {stage: self.prepared.task(stage, self.fold, self.dataset) for stage in self.stages}
        purpose = f"round {self.number}"
        return {
            stage: dataclasses.replace(task, folder=self.folder.model(stage), purpose=purpose)
            for stage, task in found.items()
        }

    def choose_apart(self, folder: RoundFolder) -> None:
        """From now on, selects in another folder: what the round's own students learned is left as they learned it.

        Raises:
            SelectionError: other models or options would label now than those that labeled the round.
        """
        state = load_state(self.folder.state)
        if state is not None and state.made_with not in ((), self.made_with()):
            raise SelectionError(
                f"round {self.number} was labeled by other models than would label it now, or with other options",
                where=self.folder.root,
                fix="give the options that it was labeled with (--tta, --ignore-contested); if models were replaced, "
                "restore them, or remove this folder and those of later rounds",
            )
        self.chosen = folder
        self.reviews = RoundReviews(self.workspace, self.dataset, self.plans.labels, self.labels, folder)

    def run(self, *, last_step: str = STEPS[-1]) -> RoundState | None:
        """Runs the steps that are not done, up to and including `last_step`.

        Returns:
            The state; None when the round was asked to stop before its end.
        """
        self._forget()
        for stage in self.stages if self.execution.crew.ranks.world_size > 1 else ():
            refuse_undivided(self.execution, self.plans.stage(stage), self.training_config(stage))
        models = [self.folder.model(stage) for stage in self.stages]
        remove_leftovers(self.folder.root, *(place for model in models for place in (model.root, model.validation)))
        refuse_changed(self.dataset, self.dataset.unlabeled, self.plans, self.workspace)
        for stage, task in self.tasks.items():  # they must not have been trained on the cases that judge them
            refuse_other_origin(dataclasses.replace(task, folder=self.labelers.former(stage)), goes_on=False)
        start = RoundState(fold=self.fold, round=self.number, config=self.config, steps={})
        state = load_state(self.chosen.state) or start
        state = dataclasses.replace(state, config=self.config, made_with=self.made_with())
        self.reviews.take(begun="train COARSE" in state.steps)
        for step in self.steps[: STEPS.index(last_step) + 1]:
            state = run_step(step, state, self.chosen.state)
            if not state.steps[step.name].done:
                return None
        return state

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in order, with the names of `STEPS`."""
        held_out, training = self.real_cases
        labeling = Step(
            name="label",
            inputs=self._labeling_inputs,
            cases=held_out,
            run=self.label,
            outputs=self._is_labeled,
        )
        selecting = Step(
            name="select",
            inputs=self._selection_inputs,
            cases=held_out + training,
            run=self.select,
            outputs=lambda: self.chosen.scores.is_file() and self.reviews.are_stored(),
        )
        summaries = [self.folder.model(stage).validation / "summary.json" for stage in self.stages]
        validating = Step(
            name="validate",
            inputs=self._validation_inputs,
            cases=held_out,
            run=self.validate,
            outputs=lambda: _are_files(self.folder.vitals, *(summaries if self.split.validation else ())),
        )
        return (labeling, selecting, *(self._training_step(stage, training) for stage in Stage), validating)

    def _training_step(self, stage: Stage, cases: str) -> Step:
        """The step that trains a student; where the plans have no such stage, it does nothing."""
        student = self.folder.model(stage)
        return Step(
            name=f"train {stage.value}",
            inputs=lambda: self.training_inputs(stage),
            cases=cases,
            run=lambda: self.train(stage),
            outputs=lambda: stage not in self.stages or student.final.is_file(),
            refuse_foreign=lambda: refuse_foreign_files(student),
            discard=lambda: clear_folder(student.root, student.NAMES),
        )

    @property
    def real_cases(self) -> tuple[str, str]:
        """Hashes of the held-out and of the training cases, as they are prepared now; empty where that is not known."""
        origin = self.tasks[Stage.FINE].made_from
        return (record_hash(origin.held_out), record_hash(origin.training)) if origin else ("", "")

    # The work of each step; False when it was asked to stop.

    def label(self, shard: Shard = Shard()) -> bool:  # noqa: B008 (frozen)
        """Labels the pool with the models of the previous round, and the held-out cases; or one shard of the pool."""
        self._forget()
        if self.chosen != self.folder and self._is_labeled():
            return True
        how, labeler = self.execution, None
        if how.crew.ranks.world_size > 1 and shard.count == 1:
            if not all(how.crew.together(how, label_part, self.labelers.teaching, self.labels, self.pool)):
                return False
        else:
            labeler = self.labelers.outside or self.labelers.teaching.labeler(how)
            if not label_pool(labeler, self.labels, self.pool, shard=shard, stop_requested=how.stop_requested):
                return False
        if shard.count == 1:
            looks = Looks(how, self.labelers.teaching, labeler or self.labelers.outside)
            observed = looks(observe, self.split.validation)
            save_record(self.folder.observations, Observations(observations=tuple(chain(*observed.values()))))
            scores = self.labels.merged_scores(self.pool, self.made_with())
            self._protection.look_before(looks, {score.case_id: score for score in scores})
            supervised = self.labelers.models(*self.labelers.former_two) if self.labelers.start else None
            self._protection.look_at_start(Looks(how, supervised) if supervised else None)
        return True

    def _is_labeled(self) -> bool:
        is_looked_at = _are_files(self.folder.observations, self.folder.vitals_before)
        is_looked_at = is_looked_at and self._protection.knows_start(self.labelers.start)
        return is_looked_at and not self.unlabeled(self.made_with())

    def select(self) -> bool:
        """Merges the scores, calibrates them on the held-out cases, and selects."""
        scores = self.labels.merged_scores(self.pool, self.made_with())
        medians = dict(zip(self.plans.labels.names, self._protection.median_ml, strict=True))
        former, outside = self.labelers.former(Stage.FINE), self.labelers.outside
        scores = with_expected_dice(scores, self._observed(), medians, former, self._reached())
        save_scores(self.chosen.scores, scores)
        selection = select(
            scores,
            self.config.selection,
            labeled_volumes(self._protection.labeled_ml, self._protection.parts_ml),
            round=self.number,
            fold=self.fold,
            barred=self._barred,
            no_teacher=self._no_teacher(),
            may_be_empty=self.reviews.vouches,
        )
        selection = outside.without_unknown(selection) if outside else selection
        selection = self.reviews.applied(selection, scores, self._barred)
        save_record(self.chosen.selection, selection)
        write_reliable_series(self.chosen, selection)
        for note in selection.notes:
            logger.warning("%s", note)
        logger.info("selected %d of %d unlabeled cases", len(selection.selected), len(scores))
        return True

    def train(self, stage: Stage) -> bool:
        """Trains the student of a stage on the fold's labeled training cases and the selected pseudo-labels."""
        if stage not in self.stages:
            return True
        return self.fit(self.tasks[stage], *self.reviews.trained_on(stage))

    def fit(self, task: TrainingTask, selection: Selection, labels: Mapping[str, LabelStore]) -> bool:
        """Trains a student, or resumes its training; False when it was asked to stop.

        Args:
            task: What to train.
            selection: The pseudo-labels to train on.
            labels: The store of each selected case's label map, on the stage's grid.
        """
        semi = SemiSupervision(labels=labels, selection=selection, mixing=self.config.mixing)
        how, config = self.execution, self.training_config(task.plan.stage)
        return all(how.crew.together(how, train_part, task, config, semi, has_state(task.folder), in_step=True))

    def validate(self) -> bool:
        """Segments the held-out real cases with the students' final weights, scores the result, looks after organs."""
        if self.execution.stop_requested():
            return False
        how, coarse = self.execution, self.folder.model(Stage.COARSE)
        for task in self.tasks.values() if self.split.validation else ():
            begin_validation(task, coarse)
            how.crew.together(how, validate_part, task, coarse, self.dataset)
            logger.info("%s", conclude_validation(task, coarse, self.dataset))
        if how.stop_requested():
            return False
        students = self.labelers.models(*(self.folder.model(stage) for stage in reversed(self.stages)))
        self._protection.look_after(Looks(how, students))
        return True

    # The inputs of each step, as hashes. Their order is part of the format of the state file.

    def _labeling_inputs(self) -> str:
        plans = inputs_hash(self.plans.fine.hash, self.plans.coarse.hash if self.plans.two_stage else "")
        return inputs_hash(plans, *self.made_with(), *self.pool)

    def _selection_inputs(self) -> str:
        observed = (file_hash(path, fix="run the labeling step to its end") for path in self._observation_files())
        if self._labels_hash is None:
            self._labels_hash = self.labels.hash(self.pool)
        reached = sorted((self._reached() or {}).items())
        given = (*sorted(self._barred.items()), *sorted(self._no_teacher().items()), *self.reviews.inputs, *reached)
        return inputs_hash(self._labeling_inputs(), self._labels_hash, self.config.selection, *observed, *given)

    def _selected(self) -> str:
        return inputs_hash(self._selection_inputs(), file_hash(self.chosen.selection))

    def training_inputs(self, stage: Stage) -> str:
        """Hash of everything that determines a student, except the real cases."""
        if stage not in self.stages:
            return inputs_hash(self._selected(), "not needed")
        config = self._student(stage)
        # Independent of where the workspace is: the hashes of who labeled identify the weights that it starts from,
        # unless that was a model from outside.
        choices = dataclasses.replace(config, init_from=config.init_from and "previous")
        start = load_checkpoint(Path(config.init_from)) if config.init_from and self.labelers.outside else None
        return inputs_hash(self._selected(), choices, self.config.mixing, *([start.weights_hash] if start else []))

    def _validation_inputs(self) -> str:
        # The weights, not the file: validation adds its findings to the file.
        finals = (load_checkpoint(self.folder.model(stage).final) for stage in self.stages)
        return inputs_hash(self._selected(), *(final.weights_hash for final in finals))

    @property
    def calibration_file(self) -> Path:
        """The calibration of the scores, kept beside the models that label."""
        return self.labelers.former(Stage.FINE).calibration

    def training_config(self, stage: Stage) -> TrainingConfig:
        """The configuration of a student."""
        config, track = self._student(stage), self.execution.track
        return config if track is None else dataclasses.replace(config, track=track)

    def _student(self, stage: Stage) -> TrainingConfig:
        supervised = load_record(self.workspace.model(self.fold, stage).run_record, RunRecord, error=ConfigError)
        return self.config.student(supervised, self.labelers.former(stage).final, self.number)

    def made_with(self) -> tuple[str, ...]:
        """Identifies the labeling models and options, see `teachers.made_with`."""
        return self.labelers.made_with

    def unlabeled(self, made_with: tuple[str, ...]) -> list[str]:
        """Cases of the pool that these checkpoints have not labeled in their current preparation."""
        return [case_id for case_id in self.pool if not self.labels.is_current(case_id, made_with)]

    def _observation_files(self) -> list[Path]:
        return [self.workspace.round(fold, self.number).observations for fold in self.peers]

    def _observed(self) -> list[Observations]:
        return [load_record(path, Observations, error=SelectionError) for path in self._observation_files()]

    def _reached(self) -> dict[str, float] | None:
        """What a model from outside that labels reaches with every organ; None: others label."""
        return self._protection.dice_reached(self._observed()) if self.labelers.outside else None

    def _forget(self) -> None:
        """Whatever was computed from the pseudo-labels, which may be others now."""
        self._labels_hash = self._untaught = None

    def _no_teacher(self) -> dict[str, str]:
        """Organs of which no pseudo-label may be learned, each with the reason."""
        if self._untaught is None:
            scores = self.labels.merged_scores(self.pool, self.made_with())
            self._untaught = self._protection.barred(scores, self.config.selection, self._reached())
        return self._untaught

    @functools.cached_property
    def _protection(self) -> Protection:
        training, organs = self.tasks[Stage.FINE].training, self.plans.labels.names
        return Protection(
            workspace=self.workspace,
            fold=self.fold,
            number=self.number,
            training=training,
            labeled_ml=volumes_ml(self.fingerprint, organs, training),
            parts_ml=volumes_ml(self.fingerprint, organs, training, parts=True),
        )

    @functools.cached_property
    def _barred(self) -> dict[str, str]:
        """Unlabeled cases that share a group with a held-out case and must not be trained on, each with the reason."""
        relatives = self.dataset.unlabeled_relatives(self.split.validation)
        return {
            case_id: f"of group '{group}', of which fold {self.fold} holds cases out"
            for case_id, group in relatives.items()
        }


def _are_files(*paths: Path) -> bool:
    return all(path.is_file() for path in paths)
