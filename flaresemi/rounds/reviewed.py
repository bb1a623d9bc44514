"""What persons decided, in a round: which pseudo-labels are used whatever their score, which label maps are theirs."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from flaresemi.dataset import Dataset
from flaresemi.errors import SelectionError
from flaresemi.io.case_store import LabelStore
from flaresemi.io.images import read_grid
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import read_organs
from flaresemi.planning.preparation import case_versions
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import stage_labels
from flaresemi.preprocessing.resampling import resample_labels
from flaresemi.pseudolabels.pool import PseudoLabels
from flaresemi.records import load_record, record_hash, save_record
from flaresemi.reviews import Review, load_reviews, reviewed_label, reviews_hash
from flaresemi.selection import CaseScore, SelectedCase, Selection
from flaresemi.workspace import RoundFolder, Workspace

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1

_AGAIN = "decide about the case again (flaresemi_review), or remove the record"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TakenReviews:
    """The decisions that a round began with.

    Attributes:
        reviews: By the names of their cases.
    """

    schema_version: int = SCHEMA_VERSION
    reviews: tuple[Review, ...]


class RoundReviews:
    """The decisions of persons in one round of one chain.

    Until the students' training begins, they are those of the workspace; from then on those that it began with.

    Args:
        workspace: Where they lie.
        dataset: With the unlabeled cases of the pool.
        labels: The organs.
        pseudo: The pseudo-labels of the round.
        folder: Where the decisions that count are kept, with what they vouch for; None: in the round's.

    Attributes:
        keeps: Whoever trains on the round's selection has begun that elsewhere: decisions since then do not count.
    """

    def __init__(
        self,
        workspace: Workspace,
        dataset: Dataset,
        labels: LabelSet,
        pseudo: PseudoLabels,
        folder: RoundFolder | None = None,
    ) -> None:
        self.workspace = workspace
        self.dataset = dataset
        self.labels = labels
        self.pseudo = pseudo
        self.folder: RoundFolder = folder or pseudo.folder
        self.stores = {
            stage: LabelStore(self.folder.reviewed(stage), store.images) for stage, store in pseudo.stores.items()
        }
        self.keeps = False
        self._taken: tuple[Review, ...] | None = None

    def take(self, *, begun: bool) -> None:
        """Decides which decisions count from now on.

        Args:
            begun: The training of the round's students has begun.
        """
        if begun or self.keeps:
            path = self.folder.reviews
            self._taken = load_record(path, TakenReviews, error=SelectionError).reviews if path.is_file() else ()
        else:
            self._taken = load_reviews(self.workspace.reviews, (case.id for case in self.dataset.unlabeled))
        self._check()

    @property
    def taken(self) -> tuple[Review, ...]:
        """The decisions that count."""
        if self._taken is None:
            self.take(begun=False)
        return self._taken or ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a selection depends on through them; nothing where there are none."""
        return (reviews_hash(self.taken),) if self.taken else ()

    @property
    def vouches(self) -> bool:
        """Whether some label map is used whatever its score."""
        return any(review.corrected or _accepts(review, self.folder.fold) for review in self.taken)

    def applied(self, selection: Selection, scores: Sequence[CaseScore], barred: Mapping[str, str]) -> Selection:
        """A selection with the decisions, which are recorded in the round; stores the label maps that they vouch for.

        Args:
            selection: By the scores alone.
            scores: Of all pseudo-labels of the round.
            barred: Cases that must not be trained on whatever anybody decides.

        Raises:
            SelectionError: nothing is left, or a decision is about another image, or its label map has changed.
            DatasetError: a label map does not lie on its image, or has undeclared values.
        """
        if not self.taken:
            self.folder.reviews.unlink(missing_ok=True)
            return selection
        sources = {review.case_id: self._source(review) for review in self.taken if review.case_id not in barred}
        selection = reviewed(selection, scores, self.taken, sources, fold=self.folder.fold)
        if not selection.selected:
            raise SelectionError(
                "the decisions of persons leave no pseudo-label",
                where=self.workspace.reviews,
                fix="take some of them back, or correct a case",
            )
        for review in self.taken:
            if sources.get(review.case_id, "pseudo") != "pseudo":
                self._store(review)
        save_record(self.folder.reviews, TakenReviews(reviews=self.taken))
        return selection

    def label_store(self, stage: Stage, case: SelectedCase) -> LabelStore:
        """Where the label map of a selected case lies: among the round's own, or among those of persons."""
        return (self.pseudo if case.source == "pseudo" else self).stores[stage]

    def trained_on(self, stage: Stage) -> tuple[Selection, dict[str, LabelStore]]:
        """The round's selection, and where each of its label maps lies."""
        selection = load_record(self.folder.selection, Selection, error=SelectionError)
        return selection, {case.case_id: self.label_store(stage, case) for case in selection.selected}

    def are_stored(self) -> bool:
        """Whether the round has a selection, and the label maps that it takes from persons are on the stages' grids."""
        if not self.folder.selection.is_file():
            return False
        selection = load_record(self.folder.selection, Selection, error=SelectionError)
        wanted = [case.case_id for case in selection.selected if case.source != "pseudo"]
        return all(store.is_current(case_id) for store in self.stores.values() for case_id in wanted)

    def _source(self, review: Review) -> str:
        """Whose label map the case is trained on, see `SelectedCase`."""
        if review.corrected:
            return "corrected"
        own = self.pseudo.stores[Stage.FINE].record(review.case_id).label_hash
        is_another = review.own_map or review.looked_at != own
        return "accepted" if _accepts(review, self.folder.fold) and is_another else "pseudo"

    def _check(self) -> None:
        """Checks that the decisions are about the images and organs that there are.

        Raises:
            SelectionError: one is not.
        """
        versions = case_versions((review.case_id for review in self.taken), self.workspace)
        for review in self.taken:
            review.refuse_unknown(self.labels.names, where=self.workspace.reviews)
            if review.image and versions[review.case_id] not in ("", review.image):
                what = (
                    f"the decision about case '{review.case_id}' is about another image: its files have changed since"
                )
                raise SelectionError(what, where=self.workspace.reviews, fix=_AGAIN)

    def _store(self, review: Review) -> None:
        """Puts the label map that a decision vouches for on the grids of the stages."""
        case, place = self.dataset.case(review.case_id), self.workspace.reviews
        path = reviewed_label(place, case.id, review.label_revision)
        if not review.has_label_map(place, {label.name: label.values for label in self.labels.labels}):
            raise SelectionError(
                f"the label map that was reviewed for case '{case.id}' is missing, has changed, or has organs by other "
                "values than the dataset",
                where=path,
                fix="flaresemi_review --import-corrections takes label maps of other programs; or " + _AGAIN,
            )
        fine = self.pseudo.stores[Stage.FINE]
        decided = [review.label_hash, review.slices, review.accepted, review.corrected]
        source = record_hash([*decided, fine.record(case.id).label_hash, *self.labels.reading])
        if all(_is_stored(store, case.id, source) for store in self.stores.values()):
            return
        grid = read_grid(case.images[0])
        vouched = read_organs(dataclasses.replace(case, label=path), self.labels, grid)
        vouched = _only_slices(vouched, review.slices, self.labels.ignored)
        supervised = tuple(sorted(map(self.labels.index, review.vouched)))
        if not review.corrected:  # the rest of the case is taught by the round's own pseudo-label
            supervised = tuple(range(1, self.labels.count + 1))
            own = np.asarray(fine.open(case.id).label_zyx)
            on_fine = stage_labels(vouched, fine.images.record(case.id).grid, self.labels.ignored)
            merged = merged_labels(on_fine, own, self.labels, tuple(map(self.labels.index, review.accepted)))
        for store in self.stores.values():
            grid_of_stage = store.images.record(case.id).grid
            if review.corrected:
                label = stage_labels(vouched, grid_of_stage, self.labels.ignored)
            else:
                label = resample_labels(merged, grid_of_stage.shape_zyx, self.labels.ignored)
            store.write_labels(case.id, label, self.labels.channels - 1, supervised, source)


def merged_labels(vouched_zyx: np.ndarray, own_zyx: np.ndarray, labels: LabelSet, organs: Sequence[int]) -> np.ndarray:
    """A label map with some organs of one and the others of another.

    Args:
        vouched_zyx: Where these organs are taken from; indices.
        own_zyx: Where all others are taken from. What is one of the organs here alone becomes what the first map says.
        labels: The organs of the dataset.
        organs: Of the first map (1 and up).
    """
    indices = sorted({index for organ in organs for index in labels.members[organ - 1]})
    takes = np.isin(vouched_zyx, indices) | np.isin(own_zyx, indices)
    kind = np.promote_types(vouched_zyx.dtype, own_zyx.dtype)
    return np.where(takes, vouched_zyx.astype(kind), own_zyx.astype(kind))


def reviewed(
    selection: Selection,
    scores: Sequence[CaseScore],
    reviews: Sequence[Review],
    sources: Mapping[str, str],
    *,
    fold: str,
) -> Selection:
    """A selection with the decisions of persons.

    What was rejected is used nowhere; what was corrected is used in every chain; what was accepted, in the chain whose
    pseudo-label was looked at, since those of the others are other label maps.

    Args:
        selection: By the scores alone.
        scores: Of all cases.
        reviews: The decisions.
        sources: Whose label map each case is trained on; cases that are missing here must not be trained on.
        fold: Of the chain.
    """
    selected = {case.case_id: case for case in selection.selected}
    rejected = dict(selection.rejected)
    known = {score.case_id: score for score in scores}
    count = {"corrected": 0, "accepted": 0, "rejected": 0}
    for review in reviews:
        score = known.get(review.case_id)
        if score is None or review.case_id not in sources:
            continue
        before = selected.pop(review.case_id, None)
        after = _decided(review, score, before, sources[review.case_id], fold)
        kind = "corrected" if review.corrected else "accepted" if _accepts(review, fold) else "rejected"
        count[kind] += 1
        if after is None:
            rejected[review.case_id] = f"rejected by {review.who}" if review.rejected else rejected[review.case_id]
        else:
            rejected.pop(review.case_id, None)
            selected[review.case_id] = after
    told = ", ".join(f"{number} {kind}" for kind, number in count.items() if number)
    return dataclasses.replace(
        selection,
        selected=tuple(sorted(selected.values(), key=lambda case: (-case.score, case.case_id))),
        rejected=rejected,
        notes=(*selection.notes, f"decisions of persons about {sum(count.values())} case(s): {told}")
        if told
        else selection.notes,
    )


def _decided(
    review: Review, score: CaseScore, before: SelectedCase | None, source: str, fold: str
) -> SelectedCase | None:
    """What a case is trained on after a decision; None: nothing."""
    reasons = {} if before is None else dict(before.rejected)
    if review.corrected:
        used = {*review.vouched}
        reasons = {}
    else:
        used = set() if before is None else {*before.supervised}
        used |= {*review.accepted} if _accepts(review, fold) else set()
    used -= {*review.rejected}
    supervised = tuple(name for name in score.organs if name in used)
    if not supervised or not (review.vouched or any(not score.organs[name].is_absent for name in supervised)):
        return None
    no = f"rejected by {review.who}"
    others = {name: reasons.get(name, "not looked at") for name in score.organs if name not in used}
    others |= {name: no for name in review.rejected if name in others}
    return SelectedCase(
        case_id=review.case_id,
        score=score.score,
        supervised=supervised,
        rejected=others,
        weight=1.0 if before is None else before.weight,
        source=source,  # type: ignore[arg-type]
    )


def _accepts(review: Review, fold: str) -> bool:
    return bool(review.accepted) and review.fold == fold


def _is_stored(store: LabelStore, case_id: str, source: str) -> bool:
    return store.is_current(case_id) and store.record(case_id).label_source == source


def _only_slices(label_zyx: np.ndarray, slices: Sequence[tuple[int, int]], ignored: int) -> np.ndarray:
    """A label map in which all but these axial slices are as if nobody had annotated them."""
    if not slices:
        return label_zyx
    kind = label_zyx.dtype if ignored <= np.iinfo(label_zyx.dtype).max else np.dtype(np.uint16)
    result = np.full(label_zyx.shape, ignored, kind)
    for start, end in slices:
        result[start:end] = label_zyx[start:end]
    return result
