"""What a result depends on: the present versions of a case's files, and how they are read."""

import dataclasses
from pathlib import Path

from flaresemi.dataset import Case
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import supervised_organs
from flaresemi.records import record_hash


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What tells a file from an earlier version of it without reading it. Its folder does not count: it may move."""

    name: str
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    files: tuple[FileStamp, ...]
    values: tuple[int, ...]
    supervised: tuple[int, ...]
    label_on_image_grid: bool
    rules: str


def stamps(case: Case) -> tuple[FileStamp, ...]:
    """The present versions of a case's files: its channels, then its label map."""
    return tuple(_stamp(path) for path in (*case.images, *([case.label] if case.label else [])))


def source_hash(case: Case, labels: LabelSet, rules: str) -> str:
    """Identifies what `read_case` gives for a case now.

    Args:
        rules: What else the result depends on.
    """
    labeled = case.label is not None
    return record_hash(
        _Reading(
            files=stamps(case),
            values=(labels.background, *(label.value for label in labels.labels)) if labeled else (),
            supervised=supervised_organs(case, labels) if labeled else (),
            label_on_image_grid=case.label_on_image_grid,
            rules=rules,
        )
    )


def _stamp(path: Path) -> FileStamp:
    try:
        status = path.stat()
    except OSError:  # reading it will say why
        return FileStamp(name=path.name, size=-1, mtime_ns=-1)
    return FileStamp(name=path.name, size=status.st_size, mtime_ns=status.st_mtime_ns)
