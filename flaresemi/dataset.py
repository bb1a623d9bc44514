"""The user's folder of cases, labeled and unlabeled, as it lies on disk. Nothing is opened here but dataset.json."""

import dataclasses
import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from flaresemi import flare22
from flaresemi.case_names import check_name, refuse_alike
from flaresemi.description import Description
from flaresemi.errors import DatasetError, listed, one_line
from flaresemi.image_paths import EXPECTED, SEGMENTATION_ENDING, image_stem, label_stem, named_images, visible_files
from flaresemi.labels import LabelSet
from flaresemi.records import closest

logger = logging.getLogger(__name__)

#: (labeled images, label maps, unlabeled images, test images) of the layouts that are understood.
LAYOUTS = {
    "flaresemi": ("labeled_image", "labeled_mask", "unlabeled_image", "test_image"),
    "nnU-Net": ("imagesTr", "labelsTr", "imagesUn", "imagesTs"),
}

#: Where the label maps of the test images are kept, for evaluation; `load_dataset` does not look there.
TEST_LABELS = {"flaresemi": "test_mask", "nnU-Net": "labelsTs"}

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One patient's scan.

    Attributes:
        id: Name of the case: the file name without channel suffix and ending.
        images: One file, or folder of DICOM slices, per channel, in channel order.
        label: The label map; None for unlabeled and test cases.
        annotated: Names of the organs that the label map annotates; None: all. Others may be in the image, unmarked.
        label_on_image_grid: True where the user has decided that the label map's header is wrong and that its voxels
            are the image's, one by one (`--fix-geometry`).
        group: What it belongs to together with others, for example its patient; None: nothing.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotated: tuple[str, ...] | None = None
    label_on_image_grid: bool = False
    group: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All cases of a folder.

    Attributes:
        root: The folder.
        name: From dataset.json, or the folder's name.
        channels: Name of each image channel; 'CT' (any case) selects the CT intensity scheme.
        labels: The organs.
        labels_assumed: True when no dataset.json named them and FLARE22's are taken on trust, until the label maps
            have been seen.
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    labels: LabelSet
    labels_assumed: bool
    labeled: tuple[Case, ...]
    unlabeled: tuple[Case, ...]
    test: tuple[Case, ...]

    def case(self, case_id: str) -> Case:
        """The case of this name.

        Raises:
            DatasetError: there is none.
        """
        for case in (*self.labeled, *self.unlabeled, *self.test):
            if case.id == case_id:
                return case
        raise DatasetError(f"no case '{case_id}' in the dataset", where=self.root)

    def unlabeled_relatives(self, case_ids: Collection[str]) -> dict[str, str]:
        """The unlabeled cases that belong to a group of one of these labeled cases, each with its group."""
        groups = {case.group for case in self.labeled if case.id in case_ids and case.group is not None}
        return {case.id: case.group for case in self.unlabeled if case.group is not None and case.group in groups}

    def learnable(self, held_out: Collection[str]) -> tuple[str, ...]:
        """The names of the unlabeled cases that a training which these labeled cases judge may learn from."""
        relatives = self.unlabeled_relatives(held_out)
        return tuple(case.id for case in self.unlabeled if case.id not in relatives)


def load_dataset(root: Path) -> Dataset:
    """Finds the cases of a folder in either layout and reads its dataset.json, where there is one.

    Raises:
        DatasetError: no known layout, no labeled case, an image without its label or the reverse, a missing channel,
            a case in two groups, or a dataset.json that cannot be used.
    """
    root = Path(root)
    description = Description(root / "dataset.json")  # first: it may say why there are no folders
    images, masks, unlabeled, test = (root / folder for folder in _folders(root))
    numbered = _channels_are_numbered(images, masks)
    labeled = _labeled_cases(_cases(images, numbered), images, masks, description)
    groups = _grouped((labeled, _cases(unlabeled, numbered), _cases(test, numbered)), description)
    channels = description.channels or _default_channels(groups)
    for group in groups:
        for case in group:
            if len(case.images) != len(channels):
                raise DatasetError(
                    f"case '{case.id}' has {len(case.images)} channel(s), the dataset has {len(channels)}: "
                    f"{', '.join(channels)}",
                    where=case.images[0],
                    fix="one file per channel: CASE_0000, CASE_0001, ..., each named in dataset.json's channel_names",
                )
    _refuse_twice(groups)
    refuse_alike((case.id for group in groups for case in group), where=root)
    return Dataset(
        root=root,
        name=one_line(description.name or root.resolve().name),
        channels=channels,
        labels=description.labels or flare22.LABELS,
        labels_assumed=description.labels is None,
        labeled=groups[0],
        unlabeled=groups[1],
        test=groups[2],
    )


def declared_labels(root: Path) -> tuple[LabelSet | None, dict[str, tuple[str, ...]]]:
    """The labels that the dataset.json of a folder declares; no case is looked for.

    Returns:
        The organs, None where no file names them; and the organs that a case annotates, for cases that do not
        annotate all.

    Raises:
        DatasetError: the file cannot be used.
    """
    description = Description(Path(root) / "dataset.json")
    return description.labels, description.annotated


def find_images(folder: Path) -> tuple[Case, ...]:
    """The images of a folder, files and series folders, as cases without labels, sorted by name.

    A name may end with a channel number (`_0000`); when no file of the folder ends with `_0000`, names are taken whole.

    Raises:
        DatasetError: the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError("folder not found", where=folder)
    cases = _cases(folder, numbered=True)
    refuse_alike((case.id for case in cases), where=folder)
    if not cases:
        raise DatasetError("no images in this folder", where=folder, fix=EXPECTED)
    return cases


def _folders(root: Path) -> tuple[str, str, str, str]:
    if not root.is_dir():
        raise DatasetError("dataset folder not found", where=root, fix="name it with -d DATASET")
    present = [folders for folders in LAYOUTS.values() if (root / folders[0]).is_dir()]
    if len(present) > 1:
        raise DatasetError(
            f"two layouts in one folder: {present[0][0]} and {present[1][0]}", where=root, fix="keep one of them"
        )
    if not present:
        expected = " or ".join("/".join(folders[:2]) for folders in LAYOUTS.values())
        raise DatasetError(
            "not a dataset folder", where=root, fix=f"expected {expected}; name the folder with -d DATASET"
        )
    return present[0]


def _label_files(folder: Path) -> list[tuple[str, Path]]:
    found = [(name, path) for name, path in named_images(folder) if image_stem(path) is not None]
    objects = [(label_stem(path), path) for path in visible_files(folder) if image_stem(path) is None]
    return found + [(name, path) for name, path in objects if name is not None]


def _channels_are_numbered(images: Path, masks: Path) -> bool:
    """Whether `case_0001` may be channel 1 of `case`: not where label maps are named like that, too."""
    names = {name for name, _ in named_images(images)}
    labels = {name for name, _ in _label_files(masks)}
    without_number = {match["case"] for match in map(_CHANNEL.fullmatch, names) if match}
    return len(names & labels) <= len(without_number & labels)


def _cases(folder: Path, numbered: bool) -> tuple[Case, ...]:
    named = []
    for name, path in named_images(folder):
        if path.name.lower().endswith(SEGMENTATION_ENDING):
            logger.warning("%s: passed over, a segmentation of 3D Slicer is no image", path)
        else:
            named.append((name, path))
    numbered = numbered and any(name.endswith("_0000") for name, _ in named)
    channels: dict[str, dict[int, Path]] = {}
    for name, path in named:
        match = _CHANNEL.fullmatch(name) if numbered else None
        case_id, channel = (match["case"], int(match["channel"])) if match else (name, 0)
        check_name(case_id, where=path)
        if channel in channels.setdefault(case_id, {}):
            raise DatasetError(
                f"two files for case '{case_id}', channel {channel}",
                where=f"{channels[case_id][channel]} and {path}",
                fix="remove one of them",
            )
        channels[case_id][channel] = path
    for case_id, found in channels.items():
        if sorted(found) != list(range(len(found))):
            raise DatasetError(
                f"case '{case_id}' has channels {sorted(found)}, expected 0 to {len(found) - 1}", where=folder
            )
    return tuple(
        Case(id=case_id, images=tuple(found[channel] for channel in sorted(found)))
        for case_id, found in sorted(channels.items())
    )


def _labeled_cases(found: tuple[Case, ...], images: Path, masks: Path, description: Description) -> tuple[Case, ...]:
    cases = {case.id: case for case in found}
    labels: dict[str, Path] = {}
    for name, path in _label_files(masks):
        if name in labels:
            raise DatasetError(
                f"two label maps for case '{name}'", where=f"{labels[name]} and {path}", fix="remove one of them"
            )
        labels[name] = path
    if not cases:
        raise DatasetError("no labeled images", where=images, fix=EXPECTED)
    without_label = sorted(cases.keys() - labels.keys())
    without_image = sorted(labels.keys() - cases.keys())
    if without_label or without_image:
        parts = []
        if without_label:
            parts.append(f"images without a label map: {listed(without_label)}")
        if without_image:
            parts.append(f"label maps without an image: {listed(without_image)}")
        raise DatasetError(
            "; ".join(parts), where=f"{images} and {masks}", fix="an image CASE_0000.nii.gz belongs to CASE.nii.gz"
        )
    unknown = sorted(description.annotated.keys() - cases.keys())
    if unknown:
        raise DatasetError(f"annotated_labels names cases that do not exist: {listed(unknown)}", where=description.path)
    return tuple(
        dataclasses.replace(case, label=labels[case.id], annotated=description.annotated.get(case.id))
        for case in cases.values()
    )


def _grouped(found: tuple[tuple[Case, ...], ...], description: Description) -> tuple[tuple[Case, ...], ...]:
    """The cases, each with the group that dataset.json puts it into."""
    group_of = {case_id: group for group, case_ids in description.groups.items() for case_id in case_ids}
    known = {case.id for cases in found for case in cases}
    if unknown := sorted(group_of.keys() - known):
        hint = closest(unknown[0], known)
        raise DatasetError(f"groups names cases that do not exist: {listed(unknown)}{hint}", where=description.path)
    return tuple(
        tuple(dataclasses.replace(case, group=group_of.get(case.id)) for case in cases) if group_of else cases
        for cases in found
    )


def _default_channels(groups: Iterable[tuple[Case, ...]]) -> tuple[str, ...]:
    count = max(len(case.images) for group in groups for case in group)
    return ("CT",) if count == 1 else tuple(f"channel {index}" for index in range(count))


def _refuse_twice(groups: tuple[tuple[Case, ...], ...]) -> None:
    seen: dict[str, Path] = {}
    for group in groups:
        for case in group:
            if case.id in seen:
                raise DatasetError(
                    f"case '{case.id}' is in two groups",
                    where=f"{seen[case.id]} and {case.images[0]}",
                    fix="rename or remove one of them",
                )
            seen[case.id] = case.images[0]
