"""The record beside every label map of flaresemi_predict: that it is a prediction, and its origin.

A label map is only replaced, or skipped as done, if its record says that flaresemi wrote it and it is unchanged since:
one that somebody has corrected since is theirs. It serves every format (the record is a file of its own), shards and
several machines (a file per label map: nobody rewrites what others wrote), and a start after a kill (the record is
there before its label map is, and says which one that takes the place of).
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flaresemi import __version__
from flaresemi.errors import ConfigError
from flaresemi.files import atomic_path, content_hash
from flaresemi.geometry import Geometry
from flaresemi.inference.measurements import CaseMeasures
from flaresemi.inference.probabilities import SavedProbabilities, remove_outdated
from flaresemi.inference.segmentation import Segmentation, write_segmentation
from flaresemi.io.image_file import content_of, files_of
from flaresemi.planning.findings import Finding
from flaresemi.ranges import FileSize, FileTime
from flaresemi.records import CAME_LATER, load_record, save_record
from flaresemi.selection import CaseScore

#: Folder beside the label maps; hidden, so that programs which list theirs find label maps alone.
RECORDS = ".flaresemi"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageVersion:
    """An image file as it was read; of a folder of DICOM slices, or of a header and its voxels, sums over the files.

    Attributes:
        content: Hash of what it holds, whatever it is called.
    """

    name: str
    size: FileSize
    mtime_ns: FileTime
    content: str

    @classmethod
    def of(cls, path: Path) -> "ImageVersion":
        """The present version.

        Raises:
            OSError: it cannot be read.
        """
        states = [os.stat(each) for each in files_of(path)]
        return cls(
            name=path.name,
            size=sum(state.st_size for state in states),
            mtime_ns=sum(state.st_mtime_ns for state in states),
            content=content_of(path),
        )

    def is_of(self, path: Path) -> bool:
        """Whether the file at `path` is this version still: by name, size and time if those suffice, else by content.

        Raises:
            OSError: it cannot be read.
        """
        states = [os.stat(each) for each in files_of(path)]
        if self.size != sum(state.st_size for state in states):
            return False
        same_time = self.mtime_ns == sum(state.st_mtime_ns for state in states)
        # Archives keep whole seconds, or one time for all files: such a time shows nothing.
        if same_time and self.name == path.name and self.mtime_ns % 10**9:
            return True
        return self.content == content_of(path)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRecord:
    """Of one label map.

    Attributes:
        label_map: Hash of the file.
        replaced: Hash of the prediction that it takes the place of; it is still there where a process was killed
            between the two.
        images: One per channel.
        grid: Of the image's file, and so of the label map's.
        models: The networks that predicted it, see `Segmenter.models`.
        options: All else that decides the labels, by name.
        score: How far it may be trusted, if that was requested.
        findings: Warnings about the image.
        measures: What was measured of every organ, if that was requested.
        saved: The files of probabilities and uncertainty, if they were requested.
    """

    schema_version: int = 1
    flaresemi: str = __version__
    label_map: str
    replaced: str | None
    images: tuple[ImageVersion, ...]
    grid: Geometry
    models: tuple[str, ...]
    options: dict[str, str]
    score: CaseScore | None = None
    findings: tuple[Finding, ...] = ()
    measures: CaseMeasures | None = dataclasses.field(default=None, metadata=CAME_LATER)
    saved: SavedProbabilities | None = dataclasses.field(default=None, metadata=CAME_LATER)

    def is_current(self, images: Sequence[Path], models: Sequence[str], options: Mapping[str, str]) -> bool:
        """Whether the same networks would predict the same labels again: from these images, with these options."""
        if (self.models, self.options, len(self.images)) != (tuple(models), dict(options), len(images)):
            return False
        try:
            return all(version.is_of(path) for version, path in zip(self.images, images, strict=True))
        except OSError:  # reading it as an image will say why
            return False


def claims_folder(results: Path) -> Path:
    """Where processes that share the images of a folder of label maps claim the one that each is at work on."""
    return results / RECORDS / "claimed"


def record_file(label_map: Path) -> Path:
    """Where the record of a label map is."""
    return label_map.parent / RECORDS / f"{label_map.name}.json"


def load_prediction(label_map: Path) -> PredictionRecord | None:
    """The record of a label map; None where there is none that can be read."""
    try:
        return load_record(record_file(label_map), PredictionRecord, error=ConfigError)
    except ConfigError:
        return None


def is_prediction(label_map: Path) -> bool:
    """Whether a file is a label map that flaresemi_predict wrote here, as it was written."""
    return _has_record(label_map) or _has_record(label_map)  # another process may have replaced both between two looks


def _has_record(label_map: Path) -> bool:
    record = load_prediction(label_map)
    return record is not None and label_map.is_file() and content_hash(label_map) in (record.label_map, record.replaced)


def write_prediction(
    path: Path,
    segmentation: Segmentation,
    *,
    images: Sequence[Path],
    models: Sequence[str],
    options: Mapping[str, str],
    score: CaseScore | None = None,
    measures: CaseMeasures | None = None,
    saved: SavedProbabilities | None = None,
    write: Callable[[Path, Segmentation], None] = write_segmentation,
) -> None:
    """Writes a label map, and its record first.

    Args:
        path: The file.
        segmentation: What is written.
        images: One per channel.
        models: As in the record.
        options: As in the record.
        score: As in the record.
        measures: As in the record.
        saved: As in the record. What was saved of the same prediction before stays; of another one, it is removed.
        write: Writes it in its format.

    Raises:
        ImageError: the file format cannot hold it.
        OSError: the disk is full, or an image has gone meanwhile.
    """
    earlier = load_prediction(path)
    before = None if earlier is None else earlier.saved
    if earlier is not None and before is not None and earlier.is_current(images, models, options):
        saved = before if saved is None else saved.with_other(before)
    with atomic_path(path) as temporary:
        write(temporary, segmentation)
        record = PredictionRecord(
            label_map=content_hash(temporary),
            replaced=content_hash(path) if is_prediction(path) else None,
            images=tuple(map(ImageVersion.of, images)),
            grid=segmentation.source.geometry,
            models=tuple(models),
            options=dict(options),
            score=score,
            measures=measures,
            saved=saved,
            findings=segmentation.findings,
        )
        save_record(record_file(path), record)
    remove_outdated(path.parent, before, {} if saved is None else saved.files)
