"""What there is to review in a workspace: images, label maps of the newest rounds, scores, and what looks wrong."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from flaresemi.case_names import case_file
from flaresemi.dataset import Case, Dataset
from flaresemi.errors import ConfigError, DatasetError
from flaresemi.evaluation.summary import load_summary
from flaresemi.io.case_store import CaseStore, LabelStore, StoredCase
from flaresemi.io.images import Image, read_grid, read_image
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import read_organs
from flaresemi.planning.findings import load_warnings
from flaresemi.planning.preparation import present_version
from flaresemi.planning.splits import Split, load_splits
from flaresemi.plans import Plans, Stage, load_fingerprint, load_plans
from flaresemi.preprocessing.preprocessor import canonical_labels
from flaresemi.pseudolabels.selecting import LabeledVolumes, labeled_volumes, volumes_ml
from flaresemi.records import load_record
from flaresemi.review.queue import QueueFacts, QueueItem, misplaced_organs, queue
from flaresemi.review.suggesting import Suggestion, label_next
from flaresemi.reviews import Review, load_review, load_reviews, reviewed_label
from flaresemi.rounds.state import RoundState, load_state
from flaresemi.selection import CaseScore, Selection, load_scores
from flaresemi.workspace import RoundFolder, Workspace

#: Which label map of a case: the newest pseudo-label, that of the round before, the one that a person vouches for, or,
#: of a held-out case, the real one.
WHICH = ("newest", "former", "reviewed", "real")

#: As many cases are suggested to be labeled next, at most. Chosen: a sitting's work.
SUGGESTED = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A label map on the canonical grid of its image.

    Attributes:
        indices_zyx: Internal indices.
        label_hash: Identifies it; of a pseudo-label, on FINE's grid.
    """

    indices_zyx: np.ndarray
    label_hash: str


class Material:
    """One chain of a workspace, for reviewing. Everything is read when it is asked for: a round may run meanwhile.

    Args:
        workspace: Planned and prepared.
        dataset: With all decisions about bad cases applied.
        fold: Of the chain.

    Raises:
        FlaresemiError: there are no plans or splits, or no such fold.
        ConfigError: the dataset has no unlabeled cases.
    """

    def __init__(self, workspace: Workspace, dataset: Dataset, fold: str) -> None:
        if not dataset.unlabeled:
            raise ConfigError(
                "the dataset has no unlabeled cases to review",
                where=dataset.root,
                fix="put them into unlabeled_image or imagesUn and run flaresemi_plan_and_preprocess again",
            )
        self.workspace = workspace
        self.dataset = dataset
        self.fold = fold
        self.plans: Plans = load_plans(workspace.plans)
        self.plans.refuse_other_dataset(dataset.labels, dataset.channels, where=dataset.root)
        self.labels: LabelSet = self.plans.labels
        self.split: Split = load_splits(workspace.splits).fold(fold)
        self.values = {label.name: label.values for label in self.labels.labels}
        self.unlabeled = {case.id: case for case in dataset.unlabeled}
        self.held_out = {case.id: case for case in dataset.labeled if case.id in self.split.validation}
        self._images = CaseStore(workspace.preprocessed(Stage.FINE))
        self._centers: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def case(self, case_id: str) -> Case:
        """An unlabeled or held-out case; the only way from a name to files.

        Raises:
            DatasetError: there is none of this name.
        """
        found = self.unlabeled.get(case_id) or self.held_out.get(case_id)
        if found is None:
            raise DatasetError(f"there is no case '{case_id[:80]}' to review", where=self.dataset.root)
        return found

    @property
    def newest(self) -> int:
        """The newest round whose pseudo-labels are complete; 0: there is none."""
        number = 0
        while self._is_labeled(number + 1):
            number += 1
        return number

    def _is_labeled(self, number: int) -> bool:
        state = self._state(number)
        return state is not None and "label" in state.steps and state.steps["label"].done

    def _state(self, number: int) -> RoundState | None:
        return load_state(self.folder(number).state)

    def folder(self, number: int) -> RoundFolder:
        """Of a round of the chain."""
        return self.workspace.round(self.fold, number)

    def image(self, case: Case) -> Image:
        """The image in canonical orientation."""
        return read_image(case.images)

    def image_version(self, case: Case) -> str:
        """Identifies the image by what its files hold now."""
        return present_version(case, self.labels)

    def label_map(self, case: Case, which: str, number: int) -> Seen | None:
        """A label map of a case on its image's canonical grid; None where there is none.

        Args:
            which: One of `WHICH`.
            number: The newest round.
        """
        if which == "real":
            return None if case.label is None else Seen(indices_zyx=self._read(case), label_hash="")
        if which == "reviewed":
            review = self.review(case.id) if case.id in self.unlabeled else None
            if review is None or not self.has_label_map(review):
                return None
            path = reviewed_label(self.workspace.reviews, case.id, review.label_revision)
            indices = self._read(dataclasses.replace(case, label=path))
            return Seen(indices_zyx=indices, label_hash=review.label_hash)
        if case.id in self.held_out:
            return self._predicted(case, which == "former")
        return self._pseudo(case, number - (which == "former"))

    def review(self, case_id: str) -> Review | None:
        """What was decided about a case."""
        return load_review(self.workspace.reviews, case_id)

    def has_label_map(self, review: Review) -> bool:
        """Whether a decision has a label map, which is there as it was; else the case is to be decided anew."""
        return review.label_revision > 0 and review.has_label_map(self.workspace.reviews, self.values)

    def label_hash(self, case_id: str, number: int) -> str:
        """Of the pseudo-label of a round, on FINE's grid; empty without one."""
        if number == 0:
            return ""
        try:
            return self._store(number).record(case_id).label_hash
        except DatasetError:
            return ""

    def _store(self, number: int) -> LabelStore:
        return LabelStore(self.folder(number).labels(Stage.FINE), self._images)

    def _pseudo(self, case: Case, number: int) -> Seen | None:
        if number < 1 or not self.label_hash(case.id, number):
            return None
        stored = self._store(number).open(case.id)
        if stored.label_zyx is None:
            return None
        if read_grid(case.images[0]).canonical.shape_zyx != stored.record.grid.canonical_shape_zyx:
            raise DatasetError(
                f"the image of case '{case.id}' is not the one that was labeled",
                where=case.images[0],
                fix="run flaresemi_plan_and_preprocess again, and the round",
            )
        indices = canonical_labels(np.asarray(stored.label_zyx), stored.record.grid, self.labels.ignored)
        return Seen(indices_zyx=indices, label_hash=stored.record.label_hash)

    def _predicted(self, case: Case, former: bool) -> Seen | None:
        """What the models of the newest round that was validated, or of the one before, made of a held-out case."""
        found = self.validated(case)[former : former + 1]
        if not found:
            return None
        path = self._prediction(case, found[0])
        return Seen(indices_zyx=self._read(dataclasses.replace(case, label=path, annotated=None)), label_hash="")

    def validated(self, case: Case) -> list[int]:
        """The rounds whose models segmented a held-out case, the newest first; 0 is the supervised start."""
        return [number for number in range(self.newest, -1, -1) if self._prediction(case, number).is_file()]

    def _prediction(self, case: Case, number: int) -> Path:
        return case_file(self.workspace.round_model(self.fold, number, Stage.FINE).validation, case.id, ".nii.gz")

    def _read(self, case: Case) -> np.ndarray:
        return read_organs(case, self.labels, read_grid(case.images[0]))

    def scores(self, number: int) -> dict[str, CaseScore]:
        """Of the pseudo-labels of a round, by case."""
        if number < 1:
            return {}
        folder = self.folder(number)
        if folder.scores.is_file():
            return {score.case_id: score for score in load_scores(folder.scores) if score.case_id in self.unlabeled}
        paths = {case_id: case_file(folder.case_scores, case_id, ".json") for case_id in self.unlabeled}
        return {case_id: load_record(path, CaseScore) for case_id, path in paths.items() if path.is_file()}

    def selection(self, number: int) -> Selection | None:
        """Of a round; None before it."""
        path = self.folder(number).selection
        return load_record(path, Selection) if number and path.is_file() else None

    @functools.cached_property
    def volumes(self) -> dict[str, LabeledVolumes]:
        """Of the organs in the labeled cases."""
        fingerprint = load_fingerprint(self.workspace.fingerprint)
        case_ids = [case.case_id for case in fingerprint.cases]
        parts = volumes_ml(fingerprint, self.labels.names, case_ids, parts=True)
        return labeled_volumes(volumes_ml(fingerprint, self.labels.names, case_ids), parts)

    def queue(self) -> tuple[tuple[QueueItem, ...], tuple[Suggestion, ...]]:
        """The cases that deserve a look, and those to label next, by what is on disk now."""
        number = self.newest
        scores, state = self.scores(number), self._state(number) if number else None
        reviews = {each.case_id: each for each in load_reviews(self.workspace.reviews, self.unlabeled)}
        hashes = {case_id: self.label_hash(case_id, number) for case_id in reviews}
        outdated = {case_id for case_id, each in reviews.items() if hashes[case_id] not in ("", each.looked_at)}
        outdated -= {case_id for case_id, each in reviews.items() if each.corrected}
        lost = {case_id for case_id, each in reviews.items() if each.label_revision and not self.has_label_map(each)}
        facts = QueueFacts(
            cases=tuple(self.unlabeled),
            scores=scores,
            former=self.scores(number - 1),
            selection=self.selection(number),
            volumes=self.volumes,
            unlike=self._unlike(),
            misplaced=self._misplaced(number, scores),
            held_out=self._held_out_dice(),
            reviews=reviews,
            outdated=frozenset(outdated),
            lost=frozenset(lost),
            **({} if state is None else {"rule": state.config.selection}),
        )
        return queue(facts), self.label_next()

    def _unlike(self) -> dict[str, tuple[str, ...]]:
        """What planning found unusual in the unlabeled cases."""
        if not self.workspace.integrity_csv.is_file():
            return {}
        found: dict[str, tuple[str, ...]] = {}
        for finding in load_warnings(self.workspace.integrity_csv):
            if finding.case_id in self.unlabeled:
                found[finding.case_id] = (*found.get(finding.case_id, ()), finding.message)
        return found

    def _held_out_dice(self) -> dict[str, tuple[Mapping[str, float], Mapping[str, float]]]:
        """Dice of the held-out cases before and after the newest round that was validated."""
        number = 1
        while self._summary(number).is_file():
            number += 1
        if number < 2 or not self._summary(number - 2).is_file():
            return {}
        before, after = (
            {
                case.case_id: {name: organ.dice for name, organ in case.organs.items() if organ.dice is not None}
                for case in load_summary(self._summary(each)).cases
            }
            for each in (number - 2, number - 1)
        )
        return {name: (before[name], after[name]) for name in self.held_out if name in before and name in after}

    def _summary(self, number: int) -> Path:
        return self.workspace.round_model(self.fold, number, Stage.FINE).validation / "summary.json"

    def _misplaced(self, number: int, scores: Mapping[str, CaseScore]) -> dict[str, dict[str, float]]:
        """Organs of pseudo-labels that lie elsewhere than in the labeled cases."""
        labeled = [self._center(f"real {case_id}", self._images.open, case_id) for case_id in self.split.train]
        found = {}
        for case_id in scores:
            version = self.label_hash(case_id, number)
            if not version or len(labeled) < 2:
                continue
            centers = self._center(f"{case_id} {version}", self._store(number).open, case_id)
            if misplaced := misplaced_organs(centers, np.array(labeled)):
                found[case_id] = {self.labels.names[organ]: distance for organ, distance in misplaced.items()}
        return found

    def _center(self, key: str, opened: Callable[[str], StoredCase], case_id: str) -> np.ndarray:
        """Center of every organ, mm, (organs, 3); NaN where it is absent or not annotated. Computed once."""
        with self._lock:
            found = self._centers.get(key)
        if found is None:
            stored = opened(case_id)
            found = np.full((self.labels.count, 3), np.nan)
            for organ in stored.record.supervised:
                voxels = np.concatenate([stored.class_voxels(index) for index in self.labels.members[organ - 1]])
                if len(voxels):
                    found[organ - 1] = voxels.mean(0) * stored.record.grid.spacing_zyx_mm
            with self._lock:
                self._centers[key] = found
        return found

    def label_next(
        self, count: int = SUGGESTED, only: Collection[str] | None = None, seed: int | None = None
    ) -> tuple[Suggestion, ...]:
        """The cases to label next, by the newest pseudo-labels; those that a person vouches for need it no longer.

        Args:
            count: How many, at most.
            only: To choose from these; None: from all unlabeled ones.
            seed: Of the choice; None: the round's number, so that each round has its own.
        """
        number = self.newest
        reviews = load_reviews(self.workspace.reviews, self.unlabeled)
        return label_next(
            [case_id for case_id in sorted(self.unlabeled) if only is None or case_id in only],
            self.scores(number),
            {name for name, known in self.volumes.items() if known.present and not known.absent},
            count,
            seed=number if seed is None else seed,
            done={review.case_id for review in reviews if review.vouched},
        )
