"""The sources of a result: the present versions of a case's files, and how they are read."""

import dataclasses
from pathlib import Path

from flaresemi.dataset import Case
from flaresemi.files import content_hash
from flaresemi.io.image_file import files_of, is_read_by_organs
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import supervised_organs
from flaresemi.ranges import FileSize, FileTime
from flaresemi.records import record_hash
from flaresemi.system_errors import is_shortage

#: How files are read; to be raised whenever the same file gives other voxels, or lies elsewhere, than before.
_READING = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """The state of a file, which distinguishes it from earlier versions without reading it. Its folder may change.

    Of a folder of DICOM slices, and where voxels lie in a file beside their header, size and time are the sums over
    all files.
    """

    name: str
    size: FileSize
    mtime_ns: FileTime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    files: tuple[FileStamp, ...] | tuple[str, ...]
    values: tuple[object, ...]
    supervised: tuple[int, ...]
    label_on_image_grid: bool
    rules: str


def stamps(case: Case) -> tuple[FileStamp, ...]:
    """The present versions of a case's files: its channels, then its label map."""
    return tuple(file_stamp(path) for path in _paths(case))


def _paths(case: Case) -> tuple[Path, ...]:
    return (*case.images, *([case.label] if case.label else []))


def source_hash(case: Case, labels: LabelSet, rules: str) -> str:
    """Identifies what `read_case` gives for a case now, by the names, sizes and times of its files.

    Args:
        rules: What else the result depends on.
    """
    return _reading_hash(case, labels, rules, stamps(case))


def case_content_hash(case: Case, labels: LabelSet, rules: str) -> str:
    """The same, by what the files hold: it outlasts their being copied. It reads them whole.

    Returns:
        The hash; empty where a file cannot be read.
    """
    try:
        files = [each for path in _paths(case) for each in files_of(path)]
        return _reading_hash(case, labels, rules, tuple(map(content_hash, files)))
    except OSError as problem:  # reading it as an image will say why
        if is_shortage(problem):
            raise
        return ""


def _reading_hash(case: Case, labels: LabelSet, rules: str, files: tuple[FileStamp, ...] | tuple[str, ...]) -> str:
    labeled = case.label is not None
    names = (labels.names,) if case.label is not None and is_read_by_organs(case.label, labels) else ()
    return record_hash(
        _Reading(
            files=files,
            values=(*labels.reading, *names) if labeled else (),
            supervised=supervised_organs(case, labels) if labeled else (),
            label_on_image_grid=case.label_on_image_grid,
            rules=f"{rules}, reading {_READING}",
        )
    )


def file_stamp(path: Path) -> FileStamp:
    """The present version of an image file or folder of slices; sizes and times of -1 where there is none."""
    try:
        found = [each.stat() for each in files_of(path)]
    except OSError as problem:  # reading it will say why
        if is_shortage(problem):
            raise
        return FileStamp(name=path.name, size=-1, mtime_ns=-1)
    return FileStamp(
        name=path.name, size=sum(each.st_size for each in found), mtime_ns=sum(each.st_mtime_ns for each in found)
    )
