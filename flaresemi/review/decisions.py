"""Decisions about cases: who has a case open, and what becomes of it, on disk."""

import dataclasses
import datetime
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flaresemi.errors import ConfigError, InUseError, SelectionError
from flaresemi.files import content_hash
from flaresemi.io.images import read_grid, write_label_map
from flaresemi.planning.preparation import case_versions
from flaresemi.records import save_record
from flaresemi.review.material import Material
from flaresemi.reviews import Review, review_file, reviewed_label, taken_back_file

#: A page says every few seconds that it still has its case open, and a hidden one, as browsers slow them down, every
#: minute; after so long without a word it is taken to be closed.
_FORGOTTEN_SECONDS = 120.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReviewDecision:
    """What a person decided about a case, see `Review`.

    Attributes:
        revision: Of the decision that the person saw; 0: none.
        looked_at: Hash of the pseudo-label that the person saw; empty: none.
        image: Version of the image that the person saw; empty: the one that was prepared.
        indices_zyx: The label map that is vouched for, on the canonical grid; None: the pseudo-label as it is.
    """

    revision: int
    looked_at: str
    image: str = ""
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
    slices: tuple[tuple[int, int], ...] = ()
    note: str = ""
    indices_zyx: np.ndarray | None = None


def decide(material: Material, case_id: str, by: str, decision: ReviewDecision) -> Review:
    """Writes a decision: first the label map, under the name of its revision, then the record that names it.

    Args:
        material: The workspace.
        case_id: An unlabeled case.
        by: Who decided.
        decision: What.

    Raises:
        ConfigError: the case is a held-out or labeled one, which nothing that is decided here may touch.
        InUseError: somebody else decided meanwhile, the image was exchanged, or the pseudo-label was made anew and is
            decided about as it is, without a label map.
        SelectionError: the decision contradicts itself.
        OSError: the disk is full or cannot be written to; what was decided before still holds.
    """
    case = material.unlabeled.get(case_id)
    if case is None:
        raise ConfigError(
            f"case '{case_id[:80]}' is no unlabeled case: nothing can be decided about it",
            fix="correct labeled cases in the dataset itself, and plan again",
        )
    number = material.newest
    before = material.review(case_id)
    if decision.revision != (before.revision if before else 0):
        who = before.who if before else "somebody, who took it back"
        raise InUseError(f"case '{case_id}' was decided meanwhile by {who}", fix="reload it, and decide again")
    if decision.indices_zyx is None and decision.looked_at != material.label_hash(case_id, number):
        raise InUseError(
            f"the pseudo-label of case '{case_id}' was made anew meanwhile", fix="reload it, and decide again"
        )
    if decision.image and decision.image != material.image_version(case):
        raise InUseError(f"the image of case '{case_id}' was exchanged meanwhile", fix="reload it, and decide again")
    if decision.slices and not decision.corrected:
        raise SelectionError(
            f"case '{case_id}': only corrected organs can count in some slices",
            fix="name those that were looked at as corrected, or no slices",
        )
    last = max((end for _, end in decision.slices), default=0)
    if last and last > (count := read_grid(case.images[0]).canonical.shape_zyx[0]):
        raise SelectionError(f"case '{case_id}' has {count} axial slices, and number {last} is named")
    review = _recorded(material, case_id, by, number, decision)
    if review.label_revision:
        path = _write(material, case_id, review.revision, number, decision)
        review = dataclasses.replace(review, label_hash=content_hash(path))
    save_record(review_file(material.workspace.reviews, case_id), review)
    return review


def _recorded(material: Material, case_id: str, by: str, number: int, decision: ReviewDecision) -> Review:
    """The record of a decision, before its label map is written, whose hash is therefore not known.

    Raises:
        SelectionError: the decision contradicts itself.
    """
    fields = {name: getattr(decision, name) for name in ("accepted", "rejected", "corrected", "slices", "note")}
    revision, vouched = _next_revision(material, case_id, decision.revision), (*decision.accepted, *decision.corrected)
    try:
        review = Review(
            case_id=case_id,
            revision=revision,
            by=by,
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            fold=material.fold,
            round=_round_of(material, case_id, number, decision.looked_at),
            looked_at=decision.looked_at,
            image=decision.image or case_versions([case_id], material.workspace)[case_id],
            label_revision=revision if vouched else 0,
            label_hash="not written yet" if vouched else "",
            own_map=bool(vouched) and decision.indices_zyx is not None,
            **fields,
        )
    except ValueError as problem:
        raise SelectionError(f"case '{case_id}': {problem}", fix="correct the decision") from None
    review.refuse_unknown(material.labels.names, where=material.workspace.plans)
    return dataclasses.replace(review, values={name: material.values[name] for name in vouched})


def _round_of(material: Material, case_id: str, number: int, looked_at: str) -> int:
    """The newest round, up to a number, whose pseudo-label it is; that number where none has it any more."""
    return next((each for each in range(number, -1, -1) if material.label_hash(case_id, each) == looked_at), number)


def _next_revision(material: Material, case_id: str, revision: int) -> int:
    """The first one that no decision about the case ever had: a round may still name its label map."""
    folder = material.workspace.reviews
    revision += 1
    while any(where(folder, case_id, revision).exists() for where in (reviewed_label, taken_back_file)):
        revision += 1
    return revision


def _write(material: Material, case_id: str, revision: int, number: int, decision: ReviewDecision) -> Path:
    """Writes the label map that is vouched for."""
    case = material.unlabeled[case_id]
    indices = decision.indices_zyx
    if indices is None:
        seen = material.label_map(case, "newest", number)
        if seen is None:
            raise SelectionError(f"case '{case_id}' has no pseudo-label to accept", fix="draw one, or reject it")
        indices = seen.indices_zyx
    path = reviewed_label(material.workspace.reviews, case_id, revision)
    write_label_map(path, material.labels.to_values(indices), read_grid(case.images[0]))
    return path


def take_back(material: Material, case_id: str, revision: int) -> None:
    """Has a decision count no more; it is kept among those that were taken back, and its label maps stay.

    Raises:
        InUseError: it is another one by now.
    """
    before = material.review(material.case(case_id).id)
    if before is None or before.revision != revision:
        raise InUseError(f"case '{case_id}' was decided meanwhile", fix="reload it")
    folder = material.workspace.reviews
    kept = taken_back_file(folder, case_id, revision)
    kept.parent.mkdir(exist_ok=True)
    review_file(folder, case_id).replace(kept)


@dataclasses.dataclass(slots=True)
class _Holder:
    tab: str
    who: str
    seen: float


class OpenCasesOfTabs:
    """Which tab of a browser has which case open for changing: one tab a case.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._holders: dict[str, _Holder] = {}
        self._lock = threading.Lock()

    def claim(self, case_id: str, tab: str, who: str) -> str | None:
        """Claims a case for a tab, or says that it still has it.

        Returns:
            None where the tab has it now; else who has it.
        """
        with self._lock:
            now = self._clock()
            holder = self._holders.get(case_id)
            if holder is not None and holder.tab != tab and now - holder.seen < _FORGOTTEN_SECONDS:
                return holder.who
            for other in [name for name, each in self._holders.items() if each.tab == tab and name != case_id]:
                del self._holders[other]  # a tab has one case open
            self._holders[case_id] = _Holder(tab, who, now)
            return None

    def release(self, tab: str) -> None:
        """A tab is closed."""
        with self._lock:
            self._holders = {name: each for name, each in self._holders.items() if each.tab != tab}

    def holders(self) -> dict[str, str]:
        """Who has which case open now."""
        with self._lock:
            now = self._clock()
            return {name: each.who for name, each in self._holders.items() if now - each.seen < _FORGOTTEN_SECONDS}

    def require(self, case_id: str, tab: str, who: str) -> None:
        """Checks that a tab has a case.

        Raises:
            InUseError: another one has it.
        """
        other = self.claim(case_id, tab, who)
        if other is not None:
            raise InUseError(f"{other} has case '{case_id}' open in another tab", fix="close it there, or ask")
