"""What persons decided about unlabeled cases: one record a case, beside the label map that it vouches for."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from flaresemi.case_names import case_file
from flaresemi.errors import SelectionError, is_one_line, listed, shown
from flaresemi.files import content_hash
from flaresemi.ranges import AtLeastOne, Few, LabelValue, Range
from flaresemi.records import CAME_LATER, load_record, record_hash

SCHEMA_VERSION = 1

#: The longest name of a person, and the longest remark. Chosen.
LONGEST_NAME, LONGEST_NOTE = 80, 2000

Slice = Annotated[int, Range(0, 2**16)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One person's decision about one unlabeled case. It holds until another one replaces it.

    Attributes:
        case_id: The case.
        revision: Counts the decisions about the case from 1, so that nobody replaces one that was not seen.
        by: Who decided.
        at: When, by the clock of the machine, ISO 8601.
        fold: The chain whose pseudo-label was looked at.
        round: Its round; 0: there was no pseudo-label.
        looked_at: Hash of that pseudo-label, on FINE's grid; empty without one.
        image: The version of the image's files, by content; empty where that is not known.
        accepted: Organs whose label is trusted as a pseudo-label is, an absence included.
        rejected: Organs whose pseudo-label is not to be used.
        corrected: Organs that the person drew, or vouches for as in a labeled case.
        slices: Axial slices [first, end) of the canonical image that were looked at; empty: all. The others are as if
            nobody had annotated them.
        label_revision: The revision whose label map counts; 0: there is none.
        label_hash: Hash of that file.
        note: A remark.
        values: The values in that file of the organs that it vouches for; none: not known.
        own_map: That file is not the pseudo-label that was looked at, but what the person drew or chose in its place.
    """

    schema_version: int = SCHEMA_VERSION
    case_id: str
    revision: AtLeastOne
    by: str
    at: str
    fold: str
    round: Few
    looked_at: str = ""
    image: str = ""
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
    slices: tuple[tuple[Slice, Slice], ...] = ()
    label_revision: Few = 0
    label_hash: str = ""
    note: str = ""
    values: dict[str, tuple[LabelValue, ...]] = dataclasses.field(default_factory=dict, metadata=CAME_LATER)
    own_map: bool = dataclasses.field(default=False, metadata=CAME_LATER)

    def __post_init__(self) -> None:
        if not self.by.strip() or len(self.by) > LONGEST_NAME or not is_one_line(self.by):
            raise ValueError(f"'by' must be a name of 1 to {LONGEST_NAME} characters on one line")
        if len(self.note) > LONGEST_NOTE:
            raise ValueError(f"a note has at most {LONGEST_NOTE} characters, found {len(self.note)}")
        decided = [*self.accepted, *self.rejected, *self.corrected]
        if not decided:
            raise ValueError("nothing is decided: name organs that are accepted, rejected or corrected")
        if twice := sorted({name for name in decided if decided.count(name) > 1}):
            raise ValueError(f"decided twice: {listed(twice)}")
        if any(start >= end for start, end in self.slices):
            raise ValueError(f"slices are [first, end) with first < end, found {self.slices}")
        if self.vouched and not (self.label_revision and self.label_hash):
            raise ValueError("organs that are accepted or corrected need the label map that was looked at")
        if self.label_revision > self.revision:
            raise ValueError(f"revision {self.revision} has no label map of revision {self.label_revision}")

    @property
    def vouched(self) -> tuple[str, ...]:
        """Organs for which its label map counts."""
        return (*self.accepted, *self.corrected)

    def refuse_unknown(self, organs: Sequence[str], *, where: Path) -> None:
        """Checks that the decision is about organs of the dataset.

        Args:
            organs: Of the dataset.
            where: What the message points to.

        Raises:
            SelectionError: it is about another one.
        """
        if unknown := sorted({*self.vouched, *self.rejected} - {*organs}):
            raise SelectionError(
                f"the decision about case '{self.case_id}' names organs that this dataset has not: {listed(unknown)}",
                where=where,
                fix=f"its organs are {listed(organs)}: decide about the case again (flaresemi_review)",
            )

    def has_label_map(self, folder: Path, values: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the label map that it vouches for is there, as it was, and means what it meant.

        Args:
            folder: Of the decisions.
            values: Of the organs of the dataset, as they are now.
        """
        path = reviewed_label(folder, self.case_id, self.label_revision)
        means_the_same = all(values.get(name) == known for name, known in self.values.items())
        return means_the_same and path.is_file() and content_hash(path) == self.label_hash

    @property
    def who(self) -> str:
        """Who decided, and on which day."""
        return f"{shown(self.by, 40)}, {shown(self.at[:10])}"


def review_file(folder: Path, case_id: str) -> Path:
    """The record of a case."""
    return case_file(folder, case_id, ".json")


def reviewed_label(folder: Path, case_id: str, revision: int) -> Path:
    """The label map of a revision, on the image's grid and with the user's values. Older ones stay.

    Records name their label map by the revision, so that a killed writer leaves the old pair whole.
    """
    return case_file(folder / "label_maps", case_id, f".r{revision}.nii.gz")


def taken_back_file(folder: Path, case_id: str, revision: int) -> Path:
    """The record of a decision that was taken back: it counts no more, and its revision is not given again."""
    return case_file(folder / "taken_back", case_id, f".r{revision}.json")


def load_review(folder: Path, case_id: str) -> Review | None:
    """The decision about a case; None where there is none.

    Raises:
        SelectionError: the record is damaged, or that of another case.
    """
    path = review_file(folder, case_id)
    if not path.is_file():
        return None
    review = load_record(path, Review, error=SelectionError)
    if review.case_id != case_id:
        raise SelectionError(
            f"this decision is about case '{shown(review.case_id)}'",
            where=path,
            fix="name the file like its case, or remove it",
        )
    return review


def load_reviews(folder: Path, case_ids: Iterable[str]) -> tuple[Review, ...]:
    """The decisions about these cases, sorted by name; there may be none.

    Raises:
        SelectionError: a record is damaged.
    """
    if not folder.is_dir():
        return ()
    found = (load_review(folder, case_id) for case_id in sorted(case_ids))
    return tuple(review for review in found if review is not None)


def reviews_hash(reviews: Sequence[Review]) -> str:
    """Identifies what decisions mean for a training; remarks do not count."""
    return record_hash(list(reviews), without=("note",))
