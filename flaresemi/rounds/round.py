"""One round of a chain: label the pool, select, train COARSE and FINE on both kinds of labels, validate."""

import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from flaresemi.compute.precision import PrecisionName
from flaresemi.compute.sharding import Shard
from flaresemi.dataset import Dataset
from flaresemi.errors import ConfigError, SelectionError
from flaresemi.files import clear_folder
from flaresemi.io.case_store import CaseStore, LabelStore
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.planning.preparation import refuse_changed
from flaresemi.planning.splits import load_splits
from flaresemi.plans import DatasetFingerprint, Plans, Stage, load_fingerprint, load_plans
from flaresemi.pseudolabels.calibration import Observations, calibrate, with_predictions
from flaresemi.pseudolabels.labeling import Labeler
from flaresemi.pseudolabels.pool import (
    is_labeled,
    label_pool,
    labels_hash,
    merge_scores,
    observe,
    write_reliable_series,
)
from flaresemi.pseudolabels.selecting import labeled_volumes, select, volumes_ml
from flaresemi.pseudolabels.teachers import judged_weights_hash, load_teachers, teacher_files, teacher_hashes
from flaresemi.records import load_record, record_hash, save_record
from flaresemi.rounds.state import (
    STEPS,
    RoundConfig,
    RoundState,
    StepState,
    file_hash,
    inputs_hash,
    load_state,
    save_state,
)
from flaresemi.selection import Selection, save_scores
from flaresemi.training.config import TrainingConfig
from flaresemi.training.resuming import has_state
from flaresemi.training.runs import RunRecord, refuse_other_origin
from flaresemi.training.semi_supervised import SemiSupervisedTrainer, SemiSupervision
from flaresemi.training.task import TrainingTask, load_task
from flaresemi.training.validation import validate
from flaresemi.unfinished import remove_leftovers
from flaresemi.workspace import ModelFolder, Workspace

logger = logging.getLogger(__name__)


class Round:
    """A round of the chain of one fold. Every step can be run again: what is done from the same inputs is kept.

    The chain never sees the labels of its fold: its models were trained without them, and so are the students.

    Args:
        workspace: Planned and prepared, with the fold trained (round 0 is the supervised training).
        dataset: With all decisions about bad cases applied.
        fold: The chain's fold.
        number: From 1.
        config: The user's choices.
        peers: Folds whose chains take part, this one among them; what their held-out cases taught about the scores is
            shared. Default: this fold alone.
        device: Where everything runs.
        precision: What the networks compute in.
        stop_requested: Asked during labeling and training; True saves and stops.
    """

    def __init__(
        self,
        workspace: Workspace,
        dataset: Dataset,
        fold: str,
        number: int,
        config: RoundConfig,
        *,
        peers: Sequence[str] | None = None,
        device: torch.device,
        precision: PrecisionName = "auto",
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        if not dataset.unlabeled:
            raise SelectionError(
                "the dataset has no unlabeled cases", where=dataset.root,
                fix="put them into unlabeled_image or imagesUn and run flaresemi_plan_and_preprocess again",
            )  # fmt: skip
        self._split = load_splits(workspace.splits).fold(fold)  # says so if there is no such fold
        self.plans: Plans = load_plans(workspace.plans)
        refuse_changed(dataset, dataset.labeled, self.plans, workspace)
        self.workspace = workspace
        self.dataset = dataset
        self.fold = fold
        self.number = number
        self.config = config
        self.peers = (fold,) if peers is None else tuple(peers)
        self.device = device
        self.precision = precision
        self.stop_requested = stop_requested
        self.folder = workspace.round(fold, number)
        self.fingerprint: DatasetFingerprint = load_fingerprint(workspace.fingerprint)
        self.pool = tuple(case.id for case in dataset.unlabeled)
        self.stages = (Stage.COARSE, Stage.FINE) if self.plans.two_stage else (Stage.FINE,)
        self._labels_hash: str | None = None

    def run(self, *, last_step: str = STEPS[-1]) -> RoundState | None:
        """Runs what is missing, up to and including `last_step`.

        Returns:
            The state; None when it was asked to stop before its end.
        """
        work: dict[str, Callable[[], bool]] = {
            "label": self.label,
            "select": self.select,
            "train COARSE": lambda: self.train(Stage.COARSE),
            "train FINE": lambda: self.train(Stage.FINE),
            "validate": self.validate,
        }
        self._remove_leftovers()
        refuse_changed(self.dataset, self.dataset.unlabeled, self.plans, self.workspace)
        for stage in self.stages:  # their weights were trained without the cases that judge here
            refuse_other_origin(dataclasses.replace(self.task(stage), folder=self._teacher(stage)), goes_on=False)
        for name in STEPS[: STEPS.index(last_step) + 1]:
            if not self._run_step(name, work[name]):
                return None
        return self._state()

    # The steps. Each returns False when it was asked to stop.

    def label(self, shard: Shard = Shard()) -> bool:  # noqa: B008 (frozen)
        """Labels the pool, or one shard of it, with the models of the round before; the held-out cases as well."""
        self._labels_hash = None
        labeler = self._labeler()
        if not label_pool(labeler, self.pool, self.folder, shard=shard, stop_requested=self.stop_requested):
            return False
        if shard.count == 1:
            observations = observe(labeler, self.task(Stage.FINE).validation)
            save_record(self.folder.observations, Observations(observations=tuple(observations)))
        return True

    def select(self) -> bool:
        """Puts the scores together, calibrates them on the held-out cases, and selects."""
        scores = merge_scores(self.pool, self.made_with(), self.folder)
        medians = dict(zip(self.plans.labels.names, self._median_volumes_ml(), strict=True))
        observed = (load_record(path, Observations, error=SelectionError) for path in self._observation_files())
        calibration = calibrate([each for record in observed for each in record.observations], medians)
        if calibration is not None:
            calibration = dataclasses.replace(calibration, made_with=judged_weights_hash(self._teacher(Stage.FINE)))
            save_record(self.calibration_file, calibration)
            logger.info(
                "predicted Dice: mean error %.3f on held-out cases (agreement itself: %.3f)",
                calibration.error, calibration.error_of_agreement,
            )  # fmt: skip
        else:
            self.calibration_file.unlink(missing_ok=True)
        if calibration is not None and calibration.is_better:
            scores = tuple(with_predictions(score, calibration) for score in scores)
        save_scores(self.folder.scores, scores)
        selection = select(
            scores, self.config.selection, labeled_volumes(self._volumes_ml()),
            round=self.number, fold=self.fold, barred=self._barred(),
        )  # fmt: skip
        save_record(self.folder.selection, selection)
        write_reliable_series(self.folder, selection)
        for note in selection.notes:
            logger.warning("%s", note)
        logger.info("selected %d of %d unlabeled cases", len(selection.selected), len(scores))
        return True

    def train(self, stage: Stage) -> bool:
        """Trains a student of one stage on the labeled cases of the fold and the selected pseudo-labels."""
        if stage not in self.stages:
            return True
        task = self.task(stage)
        selection = load_record(self.folder.selection, Selection, error=SelectionError)
        store = self.label_store(stage)
        labels = {case.case_id: store for case in selection.selected}
        semi = SemiSupervision(labels=labels, selection=selection, mixing=self.config.mixing)
        trainer = SemiSupervisedTrainer(
            task, self.training_config(stage), semi, device=self.device, stop_requested=self.stop_requested
        )
        return trainer.fit(resume=has_state(task.folder))

    def validate(self) -> bool:
        """Predicts the held-out real cases with the students' final weights."""
        if self.stop_requested():
            return False
        for stage in self.stages if self.task(Stage.FINE).validation else ():
            text = validate(
                self.task(stage), self.folder.model(Stage.COARSE), self.dataset,
                device=self.device, precision=self.precision,
            )  # fmt: skip
            logger.info("%s", text)
        return True

    @property
    def calibration_file(self) -> Path:
        """What the held-out cases taught about the scores: it belongs to the models that label."""
        return self._teacher(Stage.FINE).calibration

    def label_store(self, stage: Stage) -> LabelStore:
        """The pseudo-labels that this round drew, on the stage's grid."""
        return LabelStore(self.folder.labels(stage), CaseStore(self.workspace.preprocessed(stage)))

    def training_config(self, stage: Stage) -> TrainingConfig:
        """That of the supervised training, at its length times `length`, from scratch or from the weights before.

        A shorter one has fewer cheap validations, which would take a large part of its time. Every round has a seed of
        its own: with one seed, each would draw the same patches of the labeled cases again, which its weights know.
        """
        record = load_record(self.workspace.model(self.fold, stage).run_record, RunRecord, error=ConfigError)
        iterations = max(round(record.schedule.total_iterations * self.config.length), 1)
        start = str(self._teacher(stage).final) if self.config.start == "previous" else None
        validations = math.ceil(record.config.validations * min(self.config.length, 1.0))
        return dataclasses.replace(
            record.config, epochs=None, time_budget_seconds=None, iterations=iterations, init_from=start,
            validations=validations, seed=record.config.seed + self.number,
        )  # fmt: skip

    def refuse_other_labels(self) -> None:
        """Sees that a complete round was labeled by the models of the round before as they are now.

        Raises:
            SelectionError: they were trained again, or replaced; that some of their files are gone is no such sign.
        """
        state = load_state(self.folder.state)
        if state is None or not all(path.is_file() for path in teacher_files(*self._teachers())):
            return
        if state.made_with != self.made_with(state.config.tta):
            raise SelectionError(
                f"round {self.number} is complete, but the models that labeled it are others now",
                where=self.folder.root,
                fix="put them back, or remove this folder and those of later rounds: they are made anew",
            )

    # What the steps are made from.

    def _run_step(self, name: str, work: Callable[[], bool]) -> bool:
        inputs, cases = self.inputs(name), self.cases(name)
        state = self._state()
        before = state.steps.get(name)
        is_same = before is not None and before.inputs == inputs and before.cases in ("", cases)
        if before is not None and is_same and before.done and self._outputs_are_there(name):
            logger.info("round %d: %s is done", self.number, name)
            return True
        if before is not None and not is_same:
            logger.warning("round %d: what '%s' was made from has changed: it is done again", self.number, name)
            before = None
        if before is None:
            self._discard(name)
        step = StepState(inputs=inputs, cases=cases, seconds=before.seconds if before else 0.0)
        save_state(self.folder.state, state.with_step(name, step))
        logger.info("round %d: %s", self.number, name)
        started = time.monotonic()
        is_done = work()
        step = dataclasses.replace(step, seconds=step.seconds + time.monotonic() - started, done=is_done)
        save_state(self.folder.state, self._state().with_step(name, step))
        return is_done

    def _remove_leftovers(self) -> None:
        """Removes the unfinished files of a killed start."""
        models = [self.folder.model(stage) for stage in self.stages]
        remove_leftovers(self.folder.root, *(place for model in models for place in (model.root, model.validation)))

    def _state(self) -> RoundState:
        state = load_state(self.folder.state)
        if state is None:
            state = RoundState(fold=self.fold, round=self.number, config=self.config, steps={})
        return dataclasses.replace(state, config=self.config, made_with=self.made_with())

    def inputs(self, name: str) -> str:
        """Hash of everything that decides the result of a step."""
        plans = inputs_hash(self.plans.fine.hash, self.plans.coarse.hash if self.plans.two_stage else "")
        labeled_by = inputs_hash(plans, *self.made_with(), *self.pool)
        if name == "label":
            return labeled_by
        observed = (file_hash(path, fix="run the labeling step to its end") for path in self._observation_files())
        if self._labels_hash is None:
            self._labels_hash = labels_hash(self.pool, self._images(), self.folder)
        barred = sorted(self._barred().items())
        selected_from = inputs_hash(labeled_by, self._labels_hash, self.config.selection, *observed, *barred)
        if name == "select":
            return selected_from
        chosen = inputs_hash(selected_from, file_hash(self.folder.selection))
        if name == "validate":
            # The weights, not the file: validation writes into it what it found out.
            finals = (load_checkpoint(self.folder.model(stage).final) for stage in self.stages)
            return inputs_hash(chosen, *(final.weights_hash for final in finals))
        stage = Stage(name.removeprefix("train "))
        if stage not in self.stages:
            return inputs_hash(chosen, "not needed")
        config = self.training_config(stage)
        # Wherever the workspace lies: which weights it starts from, the teachers' hashes tell.
        choices = dataclasses.replace(config, init_from=config.init_from and "previous")
        return inputs_hash(chosen, choices, self.config.mixing)

    def cases(self, name: str) -> str:
        """Hash of the real cases that decide the result of a step."""
        origin = self.task(Stage.FINE).made_from
        if origin is None:
            return ""
        held_out, training = record_hash(origin.held_out), record_hash(origin.training)
        return {"label": held_out, "validate": held_out, "select": held_out + training}.get(name, training)

    def _outputs_are_there(self, name: str) -> bool:
        outputs = {
            "select": [self.folder.selection, self.folder.scores],
            "train COARSE": [self.folder.model(Stage.COARSE).final] if Stage.COARSE in self.stages else [],
            "train FINE": [self.folder.model(Stage.FINE).final],
            "validate": [
                self.folder.model(stage).validation / "summary.json"
                for stage in self.stages
                if self.task(stage).validation
            ],
        }
        if name == "label" and not self.folder.observations.is_file():
            return False
        if name == "label":
            return not self.unlabeled(self.made_with())
        return all(path.is_file() for path in outputs[name])

    def _images(self) -> dict[Stage, CaseStore]:
        return {stage: CaseStore(self.workspace.preprocessed(stage)) for stage in self.stages}

    def unlabeled(self, made_with: tuple[str, ...]) -> list[str]:
        """Cases that these checkpoints have not labeled as they are prepared now."""
        images = self._images()
        return [case_id for case_id in self.pool if not is_labeled(case_id, made_with, images, self.folder)]

    def _discard(self, name: str) -> None:
        """Removes what a step left that must not be taken for the new result."""
        if name.startswith("train "):
            folder = self.folder.model(Stage(name.removeprefix("train ")))
            clear_folder(folder.root, folder.NAMES)

    def _teacher(self, stage: Stage) -> ModelFolder:
        """The models of the round before."""
        return self.workspace.round_model(self.fold, self.number - 1, stage)

    def _observation_files(self) -> list[Path]:
        return [self.workspace.round(fold, self.number).observations for fold in self.peers]

    def _teachers(self) -> tuple[ModelFolder, ModelFolder | None]:
        return self._teacher(Stage.FINE), self._teacher(Stage.COARSE) if self.plans.two_stage else None

    def made_with(self, tta: bool | None = None) -> tuple[str, ...]:
        """What decides a pseudo-label: the checkpoints, and whether mirrored images are drawn too [as configured]."""
        is_mirrored = self.config.tta if tta is None else tta
        return (*teacher_hashes(*self._teachers()), *(("tta",) if is_mirrored else ()))

    def _labeler(self) -> Labeler:
        chain = dataclasses.replace(load_teachers(*self._teachers(), self.plans), made_with=self.made_with())
        fine, coarse = (CaseStore(self.workspace.preprocessed(stage)) for stage in (Stage.FINE, Stage.COARSE))
        volumes = self._median_volumes_ml()
        return Labeler(
            chain, fine, coarse, volumes, device=str(self.device), precision=self.precision, tta=self.config.tta
        )

    def task(self, stage: Stage) -> TrainingTask:
        return dataclasses.replace(load_task(self.workspace, stage, self.fold), folder=self.folder.model(stage))

    def _barred(self) -> dict[str, str]:
        """Unlabeled cases that would bring a held-out case's group into the training, each with the reason."""
        relatives = self.dataset.unlabeled_relatives(self._split.validation)
        return {
            case_id: f"of group '{group}', of which fold {self.fold} holds cases out"
            for case_id, group in relatives.items()
        }

    def _volumes_ml(self) -> dict[str, list[float]]:
        return volumes_ml(self.fingerprint, self.plans.labels.names, self.task(Stage.FINE).training)

    def _median_volumes_ml(self) -> tuple[float, ...]:
        present = ([volume for volume in found if volume > 0] for found in self._volumes_ml().values())
        return tuple(statistics.median(found) if found else 0.0 for found in present)
