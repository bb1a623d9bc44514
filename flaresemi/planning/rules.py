"""All faults of a dataset, found before anything is computed.

Facts come from `inspection`; here they are judged. An error makes a case unusable; a warning is worth a look.
"""

import collections
import json
from collections.abc import Iterator
from typing import Literal

from flaresemi.channels import is_ct
from flaresemi.dataset import Case, Dataset
from flaresemi.io.segments import EXPORT, RENUMBER, contradictions
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import (
    GRID_TOLERANCE_VOXELS,
    grid_difference,
    spans,
    supervised_organs,
    unknown_values_text,
)
from flaresemi.planning.findings import Finding, IntegrityReport, cases_per_value
from flaresemi.planning.image_checks import check_image
from flaresemi.planning.inspection import CaseFacts, LabelFacts
from flaresemi.planning.outliers import find_outliers
from flaresemi.planning.regions import LOST_SHARE
from flaresemi.sides import mirroring_caution

#: Values that a message lists.
_MOST_TOLD = 300

#: NIfTI's two affines may differ by rounding; beyond this somebody changed one of them. Chosen.
_AFFINES_APART_MM = 1.0

#: A CT has values below this: air is about -1000 HU, fat about -100, also where values are clipped (those of btcv at
#: -125). Chosen: MR has none, but for what a resampling with splines leaves beside edges.
_FAT_HU = -50.0


def judge(dataset: Dataset, facts: dict[str, CaseFacts]) -> IntegrityReport:
    """Applies all rules to what was seen of the files."""
    groups = {
        case.id: group
        for group, cases in (("labeled", dataset.labeled), ("unlabeled", dataset.unlabeled), ("test", dataset.test))
        for case in cases
    }
    findings: list[Finding] = []
    on_image_grid: dict[str, str] = {}
    for case in (*dataset.labeled, *dataset.unlabeled, *dataset.test):
        findings.extend(_unreadable(facts[case.id]))
        findings.extend(_image_findings(case, facts[case.id], dataset))
    for case in dataset.labeled:
        findings.extend(_grid_findings(case, facts[case.id], on_image_grid))
        findings.extend(_label_findings(case, facts[case.id], dataset))
    findings.extend(_dataset_findings(dataset, facts))
    findings.extend(_duplicates(dataset, facts, groups))
    findings.extend(_test_relatives(dataset))
    findings.extend(
        Finding(
            case_id=outlier.case_id,
            severity="warning",
            problem="outlier",
            file="",
            message=outlier.what,
            remedy="look at these cases: another protocol, another part of the body, or a wrong header",
        )
        for outlier in find_outliers(dataset, facts)
    )
    findings.sort(key=lambda finding: finding.severity != "error")
    return IntegrityReport(
        labels=dataset.labels, groups=groups, facts=facts, findings=tuple(findings), on_image_grid=on_image_grid
    )


def _unreadable(facts: CaseFacts) -> Iterator[Finding]:
    for problem in facts.problems:
        yield Finding(
            case_id=facts.case_id,
            severity="error",
            problem="unreadable",
            file=problem.file,
            message=problem.what,
            remedy=problem.fix,
        )


def _image_findings(case: Case, facts: CaseFacts, dataset: Dataset) -> Iterator[Finding]:
    if facts.image is None:
        return

    def warning(problem: str, message: str, remedy: str) -> Finding:
        return Finding(
            case_id=case.id,
            severity="warning",
            problem=problem,
            file=str(case.images[0]),
            message=message,
            remedy=remedy,
        )

    if facts.image.disagreement_mm > _AFFINES_APART_MM:
        what = f"the header's sform and qform place it {facts.image.disagreement_mm:.3g} mm apart"
        yield warning("two positions", what, "the sform is used; check that label maps were made on it")
    if facts.image.other_position:
        what = "a channel lies where the other of NIfTI's sform and qform places the first, but not where it counts"
        yield warning("other position", what, "its voxels are taken as the first's, one by one; see that they are")
    if facts.image.source.forms is not None and facts.image.source.forms.unoriented:
        remedy = "its axes are taken to run to the left, to the back and up; see that right and left are right"
        yield warning("no orientation", "the header does not say how the patient lies (sform and qform code 0)", remedy)
    yield from check_image(
        case.id,
        [str(path) for path in case.images],
        dataset.channels,
        facts.image.channels,
        modalities=facts.image.modalities,
        non_finite=facts.image.non_finite,
    )


def _grid_findings(case: Case, facts: CaseFacts, on_image_grid: dict[str, str]) -> Iterator[Finding]:
    if facts.image is None or facts.label is None:
        return
    difference = grid_difference(facts.label.source, facts.image.source)
    if difference is None and facts.label.source.matches_as_stored(facts.image.source, GRID_TOLERANCE_VOXELS):
        yield Finding(
            case_id=case.id,
            severity="warning",
            problem="other position",
            file=str(case.label),
            message="the label map lies where one header or the other places the image as well (NIfTI's sform and "
            "qform), but not where it counts",
            remedy="its voxels are taken as the image's, one by one; see that they are",
        )
    if difference is None:
        return
    if difference.fixable:
        on_image_grid[case.id] = difference.what
    if case.label_on_image_grid and difference.fixable:
        yield Finding(
            case_id=case.id,
            severity="warning",
            problem="grid fixed",
            file=str(case.label),
            message=difference.what,
            remedy="its voxels are taken as the image's, as you decided (--fix-geometry)",
        )
        return
    if difference.fixable:
        remedy = "if its voxels are the image's and only its header is wrong: --fix-geometry; otherwise resample it"
    elif facts.label.source.cropped:
        remedy = EXPORT
    elif facts.label.source.lies_twice(facts.image.source, GRID_TOLERANCE_VOXELS):
        remedy = "see which of the label map's sform and qform is true, and correct the other one in its header"
    else:
        remedy = "resample the label map onto its image; where a header is mirrored, correct it"
    yield Finding(
        case_id=case.id,
        severity="error",
        problem="grids differ",
        file=str(case.label),
        message=difference.what,
        remedy=remedy,
    )


def _label_findings(case: Case, facts: CaseFacts, dataset: Dataset) -> Iterator[Finding]:
    if facts.label is None:
        return

    def finding(severity: Literal["error", "warning"], problem: str, message: str, remedy: str) -> Finding:
        return Finding(
            case_id=case.id, severity=severity, problem=problem, file=str(case.label), message=message, remedy=remedy
        )

    labels = dataset.labels
    wrong, strange = contradictions(facts.label.segments, labels, facts.label.values)
    for what in wrong:
        yield finding("error", "other names", what, RENUMBER)
    for what in strange:
        yield finding("warning", "other names", what, "see that names and values in dataset.json are right")
    unknown = _unknown(facts.label, labels)
    if unknown and not dataset.labels_assumed:  # otherwise it is said once, for the whole dataset
        yield finding(
            "error",
            "unknown label",
            unknown_values_text(unknown, labels),
            'add the organ to "labels" in dataset.json, or correct the file',
        )
    annotated = {value for organ in supervised_organs(case, labels) for value in labels.labels[organ - 1].values}
    present = set(facts.label.values)
    if present <= {labels.ignore}:
        yield finding("warning", "empty label", "every voxel is ignored", "nothing is learned from it: remove the case")
    elif not present & annotated:
        yield finding("warning", "empty label", "no organ is marked", "see whether the label map was saved empty")
    if lost := _lost_to_crop(facts.label, labels):
        yield finding(
            "warning",
            "cropped",
            f"outside of what is taken for the patient lie {lost}",
            f"plans that are made now crop no image where an organ loses more than {100 * LOST_SHARE:g} %; see whether "
            "the label map lies where its organs are",
        )
    extra = [label.name for label in labels.labels if (present - annotated) & {*label.values}]
    if extra:
        yield finding(
            "warning",
            "not annotated",
            f"has {', '.join(extra)}, which annotated_labels does not name for this case",
            "these voxels are taken as not annotated",
        )


def _lost_to_crop(label: LabelFacts, labels: LabelSet) -> str:
    """The share of every organ that the body crop leaves out, the largest first; empty where it leaves out nothing."""
    counts, outside = (dict(zip(label.values, each, strict=False)) for each in (label.counts, label.outside_body))
    lost = [
        (part / sum(counts.get(value, 0) for value in organ.values), organ.name)
        for organ in labels.labels
        if (part := sum(outside.get(value, 0) for value in organ.values))
    ]
    return ", ".join(f"{100 * share:.3g} % of {name}" for share, name in sorted(lost, reverse=True))


def _unknown(label: LabelFacts, labels: LabelSet) -> tuple[int, ...]:
    known = labels.known_values
    return tuple(value for value in label.values if value not in known)


def _dataset_findings(dataset: Dataset, facts: dict[str, CaseFacts]) -> Iterator[Finding]:
    per_value = cases_per_value(facts)
    labels = dataset.labels
    description = str(dataset.root / "dataset.json")
    known = labels.known_values
    if dataset.labels_assumed and per_value.keys() - known:
        yield Finding(
            case_id="",
            severity="error",
            problem="labels not declared",
            file=description,
            message=f"without a dataset.json FLARE22's values {spans(sorted(known))} are expected, but the label maps "
            f"have {_found_text(per_value, known)}",
            remedy="correct the files, or write the names of your organs into dataset.json:\n"
            + _template(dataset, per_value),
        )
        return
    absent = [label.name for label in labels.labels if not per_value.keys() & {*label.values}]
    if absent and any(found.label for found in facts.values()):
        assumed = "; no dataset.json names them, FLARE22's organs are assumed" if dataset.labels_assumed else ""
        yield Finding(
            case_id="",
            severity="warning",
            problem="absent organ",
            file=description,
            message=f"in no label map: {', '.join(absent)}{assumed}",
            remedy="the network cannot learn them; see that names and values in dataset.json are right",
        )
    if labels.ignore in per_value and labels.background not in per_value:
        yield Finding(
            case_id="",
            severity="warning",
            problem="no background",
            file=description,
            message=f"no label map has background (value {labels.background}) beside ignored voxels",
            remedy="without any example of background, the network calls everything an organ: annotate some of it, too",
        )
    for index, name in enumerate(dataset.channels):
        lowest = _lowest_value(dataset, facts, index) if is_ct(name) else None
        if lowest is not None and lowest > _FAT_HU:
            yield Finding(
                case_id="",
                severity="warning",
                problem="no air",
                file=description,
                message=f"channel '{name}' is taken for CT, and no labeled image has air or fat in it: its "
                f"lowest value is {lowest + 0.0:g}, not about -1000 or -100 HU",
                remedy='if it is MR or else, name it so, as in "channel_names": {"0": "MR"}; if it is CT, see whether '
                "it is in Hounsfield units",
            )
    caution = mirroring_caution(labels.names, labels.mirror_pairs)
    if caution is not None:
        yield Finding(
            case_id="",
            severity="warning",
            problem="left and right",
            file=description,
            message=caution[0],
            remedy=caution[1],
        )


def _lowest_value(dataset: Dataset, facts: dict[str, CaseFacts], channel: int) -> float | None:
    """Of a channel in all labeled images; None where none can be read."""
    images = (facts[case.id].image for case in dataset.labeled)
    return min((image.channels[channel].minimum for image in images if image is not None), default=None)


def _found_text(per_value: dict[int, tuple[str, ...]], known: frozenset[int]) -> str:
    values = spans(list(per_value)[:_MOST_TOLD])
    strange = [value for value in per_value if value not in known]
    examples = ", ".join(
        f"{value} in {len(per_value[value])} case(s) such as '{per_value[value][0]}'" for value in strange[:3]
    )
    return f"{values} ({examples}{', ...' if len(strange) > 3 else ''})"


def _template(dataset: Dataset, per_value: dict[int, tuple[str, ...]]) -> str:
    """A dataset.json to copy, with the values that are there."""
    values = [value for value in per_value if value != 0][:_MOST_TOLD]
    channels = {str(index): name for index, name in enumerate(dataset.channels)}
    named = {"background": 0, **{f"organ {value}": value for value in values}}
    return json.dumps({"channel_names": channels, "labels": named}, indent=2, ensure_ascii=False)


def _duplicates(dataset: Dataset, facts: dict[str, CaseFacts], groups: dict[str, str]) -> Iterator[Finding]:
    """Images that are one and the same. Two label maps for one image contradict each other: one is wrong, and nobody
    but the user knows which. All else only distorts figures, or is meant."""
    images = {case.id: case.images[0] for case in (*dataset.labeled, *dataset.unlabeled, *dataset.test)}
    twins: dict[str, list[str]] = collections.defaultdict(list)
    for case_id, found in facts.items():
        if found.image is not None:
            twins[found.image.content].append(case_id)
    for cases in (sorted(same, key=list(groups).index) for same in twins.values() if len(same) > 1):
        first = cases[0]
        for other in cases[1:]:
            one, two = facts[first].label, facts[other].label
            contradict = one is not None and two is not None and one.content != two.content
            for case_id, twin in ((first, other), (other, first)) if contradict else ((other, first),):
                yield Finding(
                    case_id=case_id,
                    severity="error" if contradict else "warning",
                    problem="contradiction" if contradict else "duplicate",
                    file=str(images[case_id]),
                    message=f"the same image as '{twin}' ({groups[twin]})"
                    + (", with another label map" if contradict else ""),
                    remedy=_CONTRADICTION if contradict else _CONSEQUENCES[groups[first], groups[other]],
                )


def _test_relatives(dataset: Dataset) -> Iterator[Finding]:
    """Test cases of a group that is trained on: their scores are not those of somebody new."""
    seen: dict[str, tuple[str, str]] = {}
    for kind, cases in (("labeled", dataset.labeled), ("unlabeled", dataset.unlabeled)):
        for case in cases:
            if case.group is not None:
                seen.setdefault(case.group, (case.id, kind))
    for case in dataset.test:
        if case.group in seen:
            other, kind = seen[case.group]
            yield Finding(
                case_id=case.id,
                severity="warning",
                problem="group on both sides",
                file=str(case.images[0]),
                message=f"of group '{case.group}', like '{other}' ({kind})",
                remedy="training sees the group, so a score on this test case says little about new ones",
            )


_CONTRADICTION = "keep the label map that is right and remove the other case"
_CONSEQUENCES = {
    ("labeled", "labeled"): "remove one: it counts twice, and one may validate what the other has taught",
    ("labeled", "unlabeled"): "remove the unlabeled one: its pseudo-label would bring a validation case into training",
    ("labeled", "test"): "a score on this test case says nothing, since it is trained on",
    ("unlabeled", "unlabeled"): "remove one: it counts twice",
    ("unlabeled", "test"): "the test case is seen in self-training; leave it out if its score shall be clean",
    ("test", "test"): "it counts twice in a score",
}
