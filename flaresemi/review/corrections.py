"""What other programs corrected, taken as decisions: label maps of an exported queue, or of any folder."""

import dataclasses
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from flaresemi.case_names import alike
from flaresemi.dataset import Case
from flaresemi.errors import ConfigError, DatasetError, FlaresemiError, SelectionError, listed, shown
from flaresemi.evaluation.folders import files_by_case
from flaresemi.files import content_hash, read_text
from flaresemi.io.images import read_grid
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import read_organs
from flaresemi.planning.preparation import case_versions
from flaresemi.records import load_record
from flaresemi.review.decisions import ReviewDecision, decide
from flaresemi.review.exchange import QUEUE_RECORD, SNAP_TABLE, ExportedCase, ExportedQueue, named_values, voxels_hash
from flaresemi.review.material import Material
from flaresemi.reviews import LONGEST_NAME, Review

logger = logging.getLogger(__name__)

#: An organ all of whose voxels are another one now, or nearly, was renumbered and not corrected. Chosen.
_RENUMBERED = 0.9

_SNAP_LINE = re.compile(r'\s*(\d+)\s+\d+\s+\d+\s+\d+\s+\S+\s+\d+\s+\d+\s+"(.*)"\s*')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrganChange:
    """How an organ differs from the pseudo-label.

    Attributes:
        added_voxels: Voxels that are the organ now.
        removed_voxels: Voxels that were.
        voxel_ml: Volume of one.
    """

    added_voxels: int
    removed_voxels: int
    voxel_ml: float

    def __str__(self) -> str:
        parts = ((self.added_voxels, "+"), (self.removed_voxels, "-"))
        return ", ".join(f"{sign}{count} voxels ({count * self.voxel_ml:.3g} ml)" for count, sign in parts if count)


def import_corrections(
    material: Material, folder: Path, by: str, organs: Sequence[str] | None = None
) -> dict[str, dict[str, OrganChange]]:
    """Takes the label maps that another program changed as corrections.

    Args:
        material: The workspace.
        folder: One that `export_queue` wrote, or any folder with CASE.nii.gz and the like: label maps in it, or in
            `labels` in it. Of an exported one, only what has changed is taken.
        by: Who corrected them.
        organs: The organs that were looked at; None: all, which makes each a labeled case.

    Returns:
        By case that was taken, by organ that has changed, how.

    Raises:
        ConfigError: no label map, or no such organ.
        DatasetError: label maps do not lie on their images, have undeclared values or belong to no unlabeled case; all
            of them are named, after the others were taken.
    """
    names = material.labels.names
    if unknown := [name for name in organs or () if name not in names]:
        raise ConfigError(f"no such organ: {listed(unknown)}", fix=f"the organs are {', '.join(names)}")
    if not 0 < len(by.strip()) <= LONGEST_NAME:
        raise ConfigError(f"a name has 1 to {LONGEST_NAME} characters", fix="--by NAME says who corrected them")
    _refuse_other_names(folder, material.labels)
    exported, number = _exported(folder, material)
    known = {alike(name): name for name in material.unlabeled}
    files = files_by_case(folder / "labels" if (folder / "labels").is_dir() else folder)
    taken: dict[str, dict[str, OrganChange]] = {}
    failures: list[str] = []
    unchanged = again = 0
    for name, path in files.items():
        case_id = known.get(alike(name), name)
        before = exported.get(case_id)
        if before is not None and before.label == content_hash(path):
            unchanged += 1
            continue
        try:
            indices = _read(material, case_id, path, before)
            if before is not None and before.voxels == voxels_hash(indices):
                unchanged += 1
                continue
            changed = _take(material, case_id, path.name, indices, by, organs, before, number)
            if changed is None:
                again += 1
            else:
                taken[case_id] = changed
        except FlaresemiError as failure:
            failures.append(f"{failure.what} ({path})")
    if unchanged:
        logger.info("%d label map(s) are as they were exported, and are not taken", unchanged)
    if again:
        logger.info("%d label map(s) were taken before", again)
    if failures:
        raise DatasetError(
            f"{len(failures)} of {len(files)} label maps cannot be taken; {len(taken)} were\n" + "\n".join(failures),
            fix="correct or remove these files and start again: what is taken already is known by its contents",
        )
    return taken


def _exported(folder: Path, material: Material) -> tuple[Mapping[str, ExportedCase], int]:
    """What was exported, by case, and the round of its pseudo-labels; nothing and the newest round without a record."""
    path = folder / QUEUE_RECORD
    if not path.is_file():
        return {}, material.newest
    record = load_record(path, ExportedQueue, error=SelectionError)
    if record.fold != material.fold:
        raise ConfigError(
            f"this queue is one of fold {record.fold}", where=path, fix=f"import it with --fold {record.fold}"
        )
    return {case.case_id: case for case in record.cases}, record.round


def _read(material: Material, case_id: str, path: Path, before: ExportedCase | None) -> np.ndarray:
    """The label map of an unlabeled case, checked."""
    case = material.unlabeled.get(case_id)
    if case is None:
        is_labeled = any(each.id == case_id for each in material.dataset.labeled)
        kind = "a labeled one" if is_labeled else "not in the dataset, or was left out of it as unusable"
        raise DatasetError(f"case '{case_id}' is no unlabeled case: it is {kind}")
    image = case_versions([case_id], material.workspace)[case_id]
    if before is not None and "" not in (before.image, image) and before.image != image:
        raise DatasetError(f"case '{case_id}' has another image since the export: export it again")
    return read_organs(dataclasses.replace(case, label=path), material.labels, read_grid(case.images[0]))


def _take(
    material: Material,
    case_id: str,
    name: str,
    indices: np.ndarray,
    by: str,
    organs: Sequence[str] | None,
    before: ExportedCase | None,
    number: int,
) -> dict[str, OrganChange] | None:
    """How a label map differs, which is taken; None: it was taken before."""
    case, labels = material.unlabeled[case_id], material.labels
    review = material.review(case_id)
    if review is not None and _says_the_same(review, indices, material, case, organs, before):
        return None
    revision = review.revision if review else 0
    if before is not None and revision != before.revision:
        who = review.who if review else "somebody, who took it back"
        raise ConfigError(f"case '{case_id}' was decided since the export, by {who}: export it again")
    seen = material.label_map(case, "reviewed", number) or material.label_map(case, "newest", number)
    seen_zyx = None if seen is None else seen.indices_zyx
    found = changes(seen_zyx, indices, labels, read_grid(case.images[0]).canonical.spacing_zyx_mm)
    decided = _merged(review, organs, found, labels.names, before)
    if review is not None:
        _tell_what_stays(review, organs, decided)
    _warn(case_id, seen_zyx, indices, labels)
    decision = ReviewDecision(
        revision=revision,
        looked_at=material.label_hash(case_id, material.newest),
        note=f"imported from {name}" + (f", exported in round {number}" if before is not None else ""),
        indices_zyx=indices,
        **dataclasses.asdict(decided),
    )
    review = decide(material, case_id, by, decision)
    if others := [name for name in found if name not in review.vouched]:
        logger.warning("%s: %s differ, too, and do not count: --organs does not name them", case_id, listed(others))
    return {name: change for name, change in found.items() if name in review.vouched}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """What is decided about organs and slices, see `Review`."""

    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
    slices: tuple[tuple[int, int], ...] = ()


def _merged(
    review: Review | None,
    organs: Sequence[str] | None,
    changed: Collection[str],
    names: tuple[str, ...],
    before: ExportedCase | None,
) -> _Decided:
    """A correction, with what was decided before it was exported.

    Args:
        review: The decision so far.
        organs: Those that were looked at; None: all, except what was rejected and has not changed.
        changed: Organs that differ from the label map that was exported.
        names: All organs.
        before: What was exported; None: not known, and nothing of the decision stays. What it vouched for stays only
            where its label map was the one that was exported.
    """
    if review is None or before is None:
        return _Decided(corrected=names if organs is None else _in_order({*organs}, names))
    rejected = {*review.rejected}
    now = {*names} - (rejected - {*changed}) if organs is None else {*organs}
    vouched = ({*review.corrected}, {*review.accepted}) if before.reviewed else (set(), set())
    corrected = now | vouched[0]
    return _Decided(
        accepted=_in_order(vouched[1] - corrected, names),
        rejected=_in_order(rejected - corrected, names),
        corrected=_in_order(corrected, names),
        slices=review.slices if vouched[0] - now else (),
    )


def _in_order(chosen: Collection[str], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name in chosen)


def _tell_what_stays(review: Review, organs: Sequence[str] | None, decided: _Decided) -> None:
    """Tells that a decision is replaced, and what of it stays."""
    now = {*decided.corrected} if organs is None else {*organs}
    stays = []
    for kind in ("corrected", "accepted", "rejected"):
        kept = [name for name in getattr(review, kind) if name in getattr(decided, kind) and name not in now]
        if kept:
            stays.append(f"{kind} {listed(kept)}")
    logger.warning(
        "%s: takes the place of what %s decided (revision %d)%s",
        review.case_id,
        review.who,
        review.revision,
        f"; what stays of it: {'; '.join(stays)}" if stays else "",
    )
    if decided.slices:
        others = listed([name for name in review.corrected if name not in now])
        parts = ", ".join(f"{first + 1} to {end}" for first, end in decided.slices)
        logger.warning("%s: counts in slices %s only, in which %s was looked at", review.case_id, parts, others)


def _warn(case_id: str, before_zyx: np.ndarray | None, after_zyx: np.ndarray, labels: LabelSet) -> None:
    """Tells of what another program may have done to a label map that nobody meant."""
    if not after_zyx.any():
        logger.warning("%s: nothing is marked in this label map: it says that no organ is there", case_id)
    if before_zyx is None:
        return
    size = labels.channels + 1  # with what nobody annotated
    counts = np.zeros(size * size, np.int64)
    for before, after in zip(before_zyx, after_zyx, strict=True):
        counts += np.bincount((before.astype(np.int64) * size + after).ravel(), minlength=size * size)
    renumbered = []
    for index, became in enumerate(counts.reshape(size, size)[1:-1, :-1], start=1):
        most = int(np.argmax(became))
        if most not in (0, index) and became[index] == 0 and became[most] > _RENUMBERED * became.sum():
            renumbered.append(f"'{labels.class_names[most - 1]}' where '{labels.class_names[index - 1]}' was")
    if renumbered:
        logger.warning("%s: has %s: has the other program numbered them anew?", case_id, ", ".join(renumbered))


def _says_the_same(
    review: Review,
    indices: np.ndarray,
    material: Material,
    case: Case,
    organs: Sequence[str] | None,
    before: ExportedCase | None,
) -> bool:
    """Whether a label map was taken before: with it, nothing would be decided otherwise."""
    names = material.labels.names
    decided = {kind: _in_order(getattr(review, kind), names) for kind in ("accepted", "rejected", "corrected")}
    exported = None if before is None else dataclasses.replace(before, reviewed=True)
    if _merged(review, organs, (), names, exported) != _Decided(**decided, slices=review.slices):
        return False
    seen = material.label_map(case, "reviewed", material.newest)
    return seen is not None and np.array_equal(seen.indices_zyx, indices)


def changes(
    before_zyx: np.ndarray | None, after_zyx: np.ndarray, labels: LabelSet, spacing_zyx_mm: tuple[float, float, float]
) -> dict[str, OrganChange]:
    """By organ that differs, how; from nothing, where there was no label map. What nobody annotated does not count."""
    voxel_ml, known = math.prod(spacing_zyx_mm) / 1000, after_zyx != labels.ignored
    found = {}
    for organ, name in enumerate(labels.names, start=1):
        now = labels.mask(after_zyx, organ)
        before = np.zeros_like(now) if before_zyx is None else labels.mask(before_zyx, organ) & known
        added, removed = int(np.count_nonzero(now & ~before)), int(np.count_nonzero(before & ~now))
        if added or removed:
            found[name] = OrganChange(added_voxels=added, removed_voxels=removed, voxel_ml=voxel_ml)
    return found


def _refuse_other_names(folder: Path, labels: LabelSet) -> None:
    """Checks that ITK-SNAP's table in the folder still gives our values our names.

    Raises:
        DatasetError: it does not: whoever drew meant other organs.
    """
    path = folder / SNAP_TABLE
    if not path.is_file():
        return
    ours = {value: name for value, name, _ in named_values(labels)}
    for line in read_text(path, errors="replace").splitlines():
        match = _SNAP_LINE.fullmatch(line)
        if match is None or int(match[1]) == 0:
            continue
        value, name = int(match[1]), match[2]
        if ours.get(value) not in (None, name):
            raise DatasetError(
                f"value {value} is '{shown(name)}' in this table, and '{ours[value]}' in the dataset",
                where=path,
                fix="draw with the dataset's values, or remove the table if it is not true of the label maps",
            )
