"""The plans that a workspace has already, and whether they were made from the labeled cases that there are now."""

import dataclasses
import logging

from flaresemi.errors import PlanError
from flaresemi.labels import LabelSet
from flaresemi.plans import DatasetFingerprint, Plans, load_fingerprint, load_plans
from flaresemi.records import save_record
from flaresemi.sides import mirroring_told
from flaresemi.workspace import Workspace

logger = logging.getLogger(__name__)


def present_plans(fingerprint: DatasetFingerprint, workspace: Workspace, *, keep: bool) -> Plans:
    """Reads the plans and checks whether they were made from these labeled cases.

    Args:
        keep: Take them for the present cases all the same.
    """
    plans = load_plans(workspace.plans)
    # The name changes no number, and is the folder's where dataset.json gives none.
    present = dataclasses.replace(fingerprint, dataset_name=plans.dataset_name)
    is_same = present.hash == plans.fingerprint_hash
    if is_same and not keep:
        plans.refuse_other_labels(fingerprint.labels, where=workspace.plans)
        plans.refuse_other_dataset(fingerprint.labels, fingerprint.channels, where=workspace.plans)
    if is_same and (plans.labels, plans.channels) == (fingerprint.labels, fingerprint.channels):
        if kept_fingerprint(workspace) != present:
            save_record(workspace.fingerprint, present)
        return plans
    changes = _changes(fingerprint, workspace)
    if keep and plans.channels == fingerprint.channels and _same_outputs(plans.labels, fingerprint.labels):
        logger.warning("the plans are kept although the labeled cases have changed: %s", changes)
        labels = fingerprint.labels
        reasons = plans.reasons | {"mirroring": mirroring_told(labels.names, labels.mirror_pairs)}
        plans = dataclasses.replace(plans, labels=labels, fingerprint_hash=present.hash, reasons=reasons)
        save_record(workspace.fingerprint, present)
        save_record(workspace.plans, plans)
        return plans
    raise PlanError(
        f"the plans were made from other labeled cases: {changes}",
        where=workspace.plans,
        fix="--replan makes new plans, which models trained so far do not fit; --keep-plans takes the present ones, as "
        "long as organs and channels are the same",
    )


def _same_outputs(one: LabelSet, other: LabelSet) -> bool:
    """Whether a network's outputs mean the same organs; the user's values for them may differ."""
    organs = ([each.organs for each in labels.classes] for labels in (one, other))
    return one.names == other.names and next(organs) == next(organs)


def kept_fingerprint(workspace: Workspace, without: str = "") -> DatasetFingerprint | None:
    """The kept fingerprint, where there is one: it serves comparisons alone.

    Args:
        without: What to say where it is not: the comparison that is left out.
    """
    try:
        return load_fingerprint(workspace.fingerprint)
    except PlanError as problem:
        logger.info("%s%s", f"{without}: " if without else "", problem.what)
        return None


def _changes(fingerprint: DatasetFingerprint, workspace: Workspace) -> str:
    """The differences from the fingerprint that the plans were made from, in words."""
    before = kept_fingerprint(workspace)
    if before is None:
        return f"{workspace.fingerprint.name} is gone or damaged"
    old, new = ({case.case_id: case for case in found.cases} for found in (before, fingerprint))
    parts = [
        f"{len(cases)} {what} ({', '.join(cases[:3])}{', ...' if len(cases) > 3 else ''})"
        for what, cases in (
            ("new", sorted(new.keys() - old.keys())),
            ("gone", sorted(old.keys() - new.keys())),
            ("changed", sorted(case_id for case_id in new.keys() & old.keys() if new[case_id] != old[case_id])),
        )
        if cases
    ]
    if dataclasses.replace(before.labels, mirror_pairs=fingerprint.labels.mirror_pairs) == fingerprint.labels:
        if before.labels != fingerprint.labels:
            parts.append("other pairs of left and right organs, by their names or dataset.json")
    elif fingerprint.labels != before.labels:
        parts.append("other labels in dataset.json")
    if fingerprint.channels != before.channels:
        parts.append("other channels in dataset.json")
    return "; ".join(parts) or "their voxels have changed"
