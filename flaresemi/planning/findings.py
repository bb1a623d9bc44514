"""Problems of a dataset as rows: for a program to read (CSV) and for a person (summary)."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flaresemi.errors import DatasetError, shown
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import orientation, spans
from flaresemi.planning.inspection import CaseFacts
from flaresemi.tables import read_table, write_table


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem of one case, or of the dataset (then `case_id` is empty).

    Attributes:
        problem: A short code, the same for all findings of a kind.
        file: Where; empty where no one file is to blame.
        message: What is wrong.
        remedy: What to do about it.
    """

    case_id: str
    severity: Literal["error", "warning"]
    problem: str
    file: str
    message: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IntegrityReport:
    """Every case of a dataset and everything that was found.

    Attributes:
        labels: The organs that the dataset declares.
        groups: Group of each case: labeled, unlabeled or test.
        facts: What was seen of each case.
        findings: Errors first.
        on_image_grid: Labeled cases whose label map can be put on its image's grid (`--fix-geometry`), with the reason.
    """

    labels: LabelSet
    groups: dict[str, str]
    facts: dict[str, CaseFacts]
    findings: tuple[Finding, ...]
    on_image_grid: dict[str, str]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def bad_cases(self) -> dict[str, str]:
        """Cases with an error, each with its first one."""
        bad: dict[str, str] = {}
        for finding in self.errors:
            if finding.case_id:
                bad.setdefault(finding.case_id, finding.message)
        return bad

    def write_csv(self, path: Path) -> None:
        """Writes a row per case and finding; cases without one have a row as well."""
        rows: list[Sequence[str]] = [_COLUMNS]
        per_case = collections.defaultdict(list)
        for finding in self.findings:
            per_case[finding.case_id].append(finding)
        for finding in per_case.pop("", []):
            rows.append(["", "dataset", *_finding_cells(finding)])
        for case_id, group in self.groups.items():
            cells = _fact_cells(self.facts[case_id])
            for finding in per_case[case_id]:
                rows.append([case_id, group, *_finding_cells(finding), *cells])
            if not per_case[case_id]:
                rows.append([case_id, group, "ok", "", "", "", "", *cells])
        write_table(path, rows)

    def summary(self, *, most: int | None = None, severities: tuple[str, ...] = ("error", "warning")) -> str:
        """The report as text: counts, then the findings of each kind, then which label appears how often.

        Args:
            most: Findings shown per kind; None: all.
            severities: Which findings are shown; all are counted.
        """
        counts = collections.Counter(self.groups.values())
        cases = ", ".join(f"{counts[group]} {group}" for group in ("labeled", "unlabeled", "test"))
        lines = [f"cases: {cases}; {len(self.errors)} error(s), {len(self.warnings)} warning(s)"]
        kinds: dict[tuple[str, str], list[Finding]] = collections.defaultdict(list)
        for finding in (finding for finding in self.findings if finding.severity in severities):
            kinds[finding.severity, finding.problem].append(finding)
        for (severity, problem), findings in kinds.items():
            lines += ["", f"{severity}: {problem} ({len(findings)})"]
            shown = findings if most is None or len(findings) <= most + 1 else findings[:most]
            for finding in shown:
                lines.append(f"  {finding.case_id + ': ' if finding.case_id else ''}{finding.message}")
                if finding.file and severity == "error":
                    lines.append(f"      {finding.file}")
            if len(shown) < len(findings):
                lines.append(f"  ... and {len(findings) - len(shown)} more")
            for remedy in dict.fromkeys(finding.remedy for finding in findings if finding.remedy):
                lines.append(f"  -> {remedy.replace(chr(10), chr(10) + '     ')}")
        return "\n".join([*lines, "", self._label_table()]) + "\n"

    def _label_table(self) -> str:
        per_value = cases_per_value(self.facts)
        labeled = sum(group == "labeled" for group in self.groups.values())
        cases = ({case for value in label.values for case in per_value.get(value, ())} for label in self.labels.labels)
        found = [f"{name} {len(having)}" for name, having in zip(self.labels.names, cases, strict=True)]
        return f"organs, each with the number of the {labeled} labeled cases that have it: {', '.join(found)}"


def cases_per_value(facts: dict[str, CaseFacts]) -> dict[int, tuple[str, ...]]:
    """The cases that each value of the label maps occurs in, by ascending value."""
    cases: dict[int, list[str]] = collections.defaultdict(list)
    for case_id, found in facts.items():
        for value in found.label.values if found.label else ():
            cases[value].append(case_id)
    return {value: tuple(cases[value]) for value in sorted(cases)}


def load_warnings(path: Path) -> tuple[Finding, ...]:
    """The warnings about single cases in a file that `IntegrityReport.write_csv` wrote.

    Raises:
        DatasetError: it is not such a file.
    """
    try:
        columns, rows = read_table(path)
        if not {"case", "severity", *_FINDING_COLUMNS} <= set(columns):
            raise ValueError("its columns are others")
        return tuple(
            Finding(case_id=row["case"], severity="warning", **{name: row[name] for name in _FINDING_COLUMNS})
            for row in rows
            if row["severity"] == "warning" and row["case"]
        )
    except ValueError as problem:
        raise DatasetError(
            f"not a list of findings: {shown(str(problem), 200)}",
            where=path,
            fix="run flaresemi_plan_and_preprocess, which writes it",
        ) from None


_FINDING_COLUMNS = ("problem", "file", "message", "remedy")

_COLUMNS = (
    "case",
    "group",
    "severity",
    "problem",
    "file",
    "message",
    "remedy",
    "shape_zyx",
    "spacing_zyx_mm",
    "orientation",
    "minimum",
    "maximum",
    "label_values",
)


def _finding_cells(finding: Finding) -> list[str]:
    return [finding.severity, finding.problem, finding.file, finding.message, finding.remedy]


def _fact_cells(facts: CaseFacts) -> list[str]:
    values = spans(list(facts.label.values)) if facts.label else ""
    if facts.image is None:
        return ["", "", "", "", "", values]
    geometry, channels = facts.image.geometry, facts.image.channels
    return [
        " ".join(map(str, geometry.shape_zyx)),
        " ".join(f"{spacing:.6g}" for spacing in geometry.spacing_zyx_mm),
        orientation(facts.image.source),
        " ".join(f"{channel.minimum:.6g}" for channel in channels),
        " ".join(f"{channel.maximum:.6g}" for channel in channels),
        values,
    ]
