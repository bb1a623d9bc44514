"""Every path that is ever written, in one class."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from flaresemi.case_names import is_fold
from flaresemi.errors import ConfigError, PlanError, shown
from flaresemi.image_paths import image_stem, visible_files
from flaresemi.plans import Stage
from flaresemi.records import load_json


@dataclasses.dataclass(frozen=True, slots=True)
class Workspace:
    """The one folder that a dataset's results go to.

    ```
    integrity.csv  integrity.txt          what was found wrong with the data
    inspected_cases.json                  facts of every file, so that it is read only once
    case_decisions.json                   cases left out, label maps put on their image's grid
    fingerprint.json  plans.json  splits.json
    lists/*.txt                           labeled, unlabeled, test; train and validation per fold
    preprocessed/FINE|COARSE/CASE/        resampled cases
    models/fold_0/FINE/                   see ModelFolder
    pseudolabels/fold_0/FINE/CASE/        label maps from elsewhere that a training learns from
    rounds/fold_0/round_1/                see RoundFolder
    rounds/fold_0/final/                  what the final models learn of a round whose own students learned otherwise
    rounds/folds_0.json                   what was judged of the chains of these folds
    rounds/final/                         models on everything, after the chains have ended
    reviews/CASE.json                     what persons decided about unlabeled cases, see `reviews`
    ```
    """

    root: Path

    def links_elsewhere(self) -> dict[Path, Path]:
        """The folders of the workspace that are links out of it, and where they lead."""
        root = self.root.resolve()
        found = (path for pattern in ("*", "*/*", "models/*/*", "rounds/*/*") for path in self.root.glob(pattern))
        leading = {path: path.resolve() for path in found if path.is_symlink() and path.is_dir()}
        return {path: target for path, target in leading.items() if not target.is_relative_to(root)}

    @property
    def integrity_csv(self) -> Path:
        return self.root / "integrity.csv"

    @property
    def integrity_summary(self) -> Path:
        return self.root / "integrity.txt"

    @property
    def inspected_cases(self) -> Path:
        """Facts of every file that was read, kept so that it is not read again."""
        return self.root / "inspected_cases.json"

    @property
    def case_decisions(self) -> Path:
        """The user's decisions about bad cases; every later command obeys them."""
        return self.root / "case_decisions.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def case_fingerprints(self) -> Path:
        """Measured cases, kept so that a killed fingerprinting goes on."""
        return self.root / "fingerprint_cases"

    @property
    def plans(self) -> Path:
        return self.root / "plans.json"

    @property
    def replaced_plans(self) -> Path:
        """The plans before the last --replan."""
        return self.root / "plans_replaced.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def lists(self) -> Path:
        return self.root / "lists"

    @property
    def prepared_sources(self) -> Path:
        """Per prepared case: the files that it was made from, so that a corrected file is prepared again."""
        return self.root / "preprocessed" / "sources"

    @property
    def prepared_claims(self) -> Path:
        """Locks of the cases that processes which share the preparation are at work on; there only meanwhile."""
        return self.root / "preprocessed" / ".claimed"

    def preprocessed(self, stage: Stage) -> Path:
        return self.root / "preprocessed" / stage.value

    @property
    def models(self) -> Path:
        return self.root / "models"

    def model(self, fold: str, stage: Stage) -> "ModelFolder":
        """Folder of one training. `fold` is a number or 'all'."""
        return ModelFolder(self.models / _fold_folder(fold) / stage.value)

    def pseudo_labels(self, fold: str, stage: Stage) -> Path:
        """Label maps from elsewhere, on the stage's grid, that one training learns from."""
        return self.root / "pseudolabels" / _fold_folder(fold) / stage.value

    def foreign(self) -> list[Path]:
        """Foreign entries where planning writes, in a folder that is not marked as a workspace."""
        records = {  # and a key that each of them has
            self.inspected_cases: "cases",
            self.case_decisions: "skipped",
            self.fingerprint: "dataset_name",
            self.plans: "fingerprint_hash",
            self.splits: "folds",
        }
        if any(_is_record(path, key) for path, key in records.items()):
            return []
        files = (*records, self.integrity_csv, self.integrity_summary, self.replaced_plans)
        folders = (self.case_fingerprints, self.lists, self.root / "preprocessed")
        images = [path for path in visible_files(self.root) if image_stem(path) is not None]
        return [
            *(path for path in files if os.path.lexists(path)),
            *(path for path in folders if os.path.lexists(path) and not _is_empty_folder(path)),
            *images,
        ]

    def lock(self, *parts: str) -> Path:
        """The file that whoever works on this part of the workspace holds a lock on; there only meanwhile."""
        return self.root / f".lock-{'-'.join(parts)}"

    def chain(self, fold: str) -> Path:
        """The folder of a chain of self-training rounds, which belongs to one fold."""
        return self.root / "rounds" / _fold_folder(fold)

    def round_model(self, fold: str, number: int, stage: Stage) -> "ModelFolder":
        """The models that a round trained; of round 0, the supervised ones."""
        return self.round(fold, number).model(stage) if number else self.model(fold, stage)

    def verdict(self, folds: Sequence[str]) -> Path:
        """The joint judgment of the chains of these folds."""
        return self.root / "rounds" / f"folds_{'_'.join(map(_checked_fold, folds))}.json"

    @property
    def final_round(self) -> "RoundFolder":
        """The models that are trained on everything after the chains have ended."""
        return RoundFolder(self.root / "rounds" / "final", "all")

    def final_choice(self, fold: str) -> "RoundFolder":
        """What the final models learn from the pseudo-labels of a chain, where a round's own students have begun."""
        return RoundFolder(self.chain(fold) / "final", fold)

    @property
    def reviews(self) -> Path:
        """What persons decided about unlabeled cases; `label_maps` in it holds what they vouch for."""
        return self.root / "reviews"

    @property
    def review_token(self) -> Path:
        """The secret part of the address of the review page, for nobody's eyes but its owner's."""
        return self.root / ".review-token"

    def round(self, fold: str, number: int) -> "RoundFolder":
        """Folder of one round of a chain, from 1."""
        return RoundFolder(self.chain(fold) / f"round_{number}", fold)


def _is_empty_folder(path: Path) -> bool:
    """Also behind a link: somebody may want to have it on another disk."""
    return path.is_dir() and not any(path.iterdir())


def _is_record(path: Path, key: str) -> bool:
    """Whether a file is a record of ours with this key, of whatever version."""
    try:
        found = load_json(path)
    except PlanError:
        return False
    return isinstance(found, dict) and {"schema_version", key} <= found.keys()


def _checked_fold(fold: str) -> str:
    if not is_fold(fold):
        raise ConfigError(f"there is no fold '{shown(fold)}'", fix="folds are numbers, or 'all'")
    return fold


def _fold_folder(fold: str) -> str:
    return f"fold_{_checked_fold(fold)}"


@dataclasses.dataclass(frozen=True, slots=True)
class RoundFolder:
    """The folder of one round of self-training."""

    #: Patterns of what is written into it.
    NAMES: ClassVar = (
        "round.json",
        "labels",
        "case_scores",
        "claimed",
        "claims",
        "observations.json",
        "vitals_before.json",
        "vitals_start.json",
        "vitals.json",
        "scores.csv",
        "selection.json",
        "reliable_series.txt",
        "reviews.json",
        "reviewed",
        "report.html",
        "models",
    )

    root: Path
    fold: str

    @property
    def state(self) -> Path:
        """Which steps are done, from what."""
        return self.root / "round.json"

    def labels(self, stage: Stage) -> Path:
        """Label maps of the unlabeled cases on this stage's grid."""
        return self.root / "labels" / stage.value

    @property
    def case_scores(self) -> Path:
        """One score file per labeled case; it says that the case is done."""
        return self.root / "case_scores"

    @property
    def claims(self) -> Path:
        """Locks of the cases that a process is labeling now; empty otherwise."""
        return self.root / "claimed"

    @property
    def observations(self) -> Path:
        """Scores of the held-out real cases with their true Dice."""
        return self.root / "observations.json"

    @property
    def vitals_before(self) -> Path:
        """What the models that label make of every organ."""
        return self.root / "vitals_before.json"

    @property
    def vitals_start(self) -> Path:
        """What the supervised models make of every organ, where a model from outside labels in their place."""
        return self.root / "vitals_start.json"

    @property
    def vitals(self) -> Path:
        """What the students make of every organ, and whether one is vanishing."""
        return self.root / "vitals.json"

    @property
    def scores(self) -> Path:
        return self.root / "scores.csv"

    @property
    def selection(self) -> Path:
        return self.root / "selection.json"

    @property
    def reliable_series(self) -> Path:
        return self.root / "reliable_series.txt"

    @property
    def reviews(self) -> Path:
        """The decisions of persons that the round began with."""
        return self.root / "reviews.json"

    def reviewed(self, stage: Stage) -> Path:
        """Label maps that persons vouch for, on this stage's grid."""
        return self.root / "reviewed" / stage.value

    @property
    def report(self) -> Path:
        """The page that tells a person whether to trust the round."""
        return self.root / "report.html"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def model(self, stage: Stage) -> "ModelFolder":
        return ModelFolder(self.models / _fold_folder(self.fold) / stage.value)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFolder:
    """The folder of one training run. Its checkpoints hold all that prediction needs."""

    #: Patterns of what is written into it.
    NAMES: ClassVar = (
        "run.json",
        "history.jsonl",
        "curves.png",
        "calibration.json",
        "checkpoint_*.pt",
        "snapshot_*.pt",
        "logs",
        "validation",
        ".compiled",
    )

    root: Path

    @property
    def run_record(self) -> Path:
        return self.root / "run.json"

    @property
    def history(self) -> Path:
        return self.root / "history.jsonl"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

    @property
    def logs(self) -> Path:
        """TensorBoard."""
        return self.root / "logs"

    @property
    def latest(self) -> Path:
        return self.root / "checkpoint_latest.pt"

    @property
    def previous(self) -> Path:
        """The state before the latest one, until the training is complete."""
        return self.root / "checkpoint_previous.pt"

    @property
    def best(self) -> Path:
        return self.root / "checkpoint_best.pt"

    def snapshot(self, percent: int) -> Path:
        """Weights after 36, 66 or 100 percent of the training."""
        return self.root / f"snapshot_{percent:03d}.pt"

    @property
    def final(self) -> Path:
        return self.snapshot(100)

    @property
    def calibration(self) -> Path:
        """The calibration of this model's scores, learned from held-out cases."""
        return self.root / "calibration.json"

    @property
    def compiled(self) -> Path:
        """What was found out on one machine about computing these networks, for the next process there."""
        return self.root / ".compiled"

    @property
    def validation(self) -> Path:
        return self.root / "validation"
