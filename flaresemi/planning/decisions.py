"""The user's decisions about bad cases, kept in the workspace and obeyed by every later command."""

import dataclasses
import logging

from flaresemi.dataset import Case, Dataset
from flaresemi.errors import DatasetError
from flaresemi.planning.findings import IntegrityReport
from flaresemi.planning.inspection import CaseFacts
from flaresemi.planning.rules import judge
from flaresemi.records import load_record, save_record
from flaresemi.workspace import Workspace

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseDecision:
    """A decision about one case, and why it was needed."""

    case_id: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """All decisions of a workspace.

    Attributes:
        skipped: Cases that are left out (`--skip-bad-cases`).
        on_image_grid: Cases whose label map is put on its image's grid, whatever its header says (`--fix-geometry`).
            The files themselves are never changed.
    """

    schema_version: int = SCHEMA_VERSION
    skipped: tuple[CaseDecision, ...] = ()
    on_image_grid: tuple[CaseDecision, ...] = ()


def load_decisions(workspace: Workspace) -> Decisions:
    """The decisions of a workspace; none where there is no file.

    Raises:
        DatasetError: the file is damaged.
    """
    if not workspace.case_decisions.exists():
        return Decisions()
    return load_record(workspace.case_decisions, Decisions, error=DatasetError)


def save_decisions(workspace: Workspace, decisions: Decisions) -> None:
    """Writes the decisions; no file where there is none to make."""
    if decisions == Decisions():
        workspace.case_decisions.unlink(missing_ok=True)
    elif decisions != load_decisions(workspace):
        save_record(workspace.case_decisions, decisions)


def usable_cases(dataset: Dataset, workspace: Workspace) -> Dataset:
    """The dataset as every command after planning uses it: without the cases that were left out, and with the
    label maps that belong on their image's grid marked.

    Raises:
        DatasetError: the file of decisions is damaged, or no labeled case is left.
    """
    return require_labeled(apply_decisions(dataset, load_decisions(workspace)))


def settle(
    dataset: Dataset,
    facts: dict[str, CaseFacts],
    before: Decisions,
    *,
    fix_geometry: bool = False,
    skip_bad_cases: bool = False,
) -> tuple[IntegrityReport, Decisions]:
    """Judges a dataset in the light of earlier and new decisions.

    Args:
        dataset: All cases, as they lie on disk.
        facts: What was seen of them.
        before: Decisions of earlier runs; each holds as long as its case still needs it.
        fix_geometry: Put label maps on their image's grid wherever their voxels match one by one.
        skip_bad_cases: Leave out every case that has an error.

    Returns:
        The report, and the decisions that hold now. Cases with an error that are not among the skipped are still to
        be dealt with.
    """
    fixable = judge(dataset, facts).on_image_grid
    moved_before = {decision.case_id for decision in before.on_image_grid}
    moved = {case_id: why for case_id, why in fixable.items() if fix_geometry or case_id in moved_before}
    decisions = Decisions(on_image_grid=_as_decisions(moved))
    report = judge(apply_decisions(dataset, decisions), facts)
    skipped_before = {decision.case_id for decision in before.skipped}
    skipped = {case_id: why for case_id, why in report.bad_cases.items() if skip_bad_cases or case_id in skipped_before}
    return report, dataclasses.replace(decisions, skipped=_as_decisions(skipped))


def _as_decisions(reasons: dict[str, str]) -> tuple[CaseDecision, ...]:
    return tuple(CaseDecision(case_id=case_id, why=why) for case_id, why in reasons.items())


def require_labeled(dataset: Dataset) -> Dataset:
    """The same dataset.

    Raises:
        DatasetError: no labeled case is left in it.
    """
    if not dataset.labeled:
        raise DatasetError(
            "no labeled case can be used", where=dataset.root, fix="integrity.txt in the workspace says what is wrong"
        )
    return dataset


def apply_decisions(dataset: Dataset, decisions: Decisions) -> Dataset:
    """Leaves out and marks cases as decided."""
    skipped = {decision.case_id for decision in decisions.skipped}
    moved = {decision.case_id for decision in decisions.on_image_grid}

    def kept(cases: tuple[Case, ...]) -> tuple[Case, ...]:
        return tuple(
            dataclasses.replace(case, label_on_image_grid=True) if case.id in moved and case.label else case
            for case in cases
            if case.id not in skipped
        )

    return dataclasses.replace(
        dataset, labeled=kept(dataset.labeled), unlabeled=kept(dataset.unlabeled), test=kept(dataset.test)
    )
