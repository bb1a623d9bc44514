"""The user's folder of cases, labeled and unlabeled, as it lies on disk. Nothing is opened here but dataset.json."""

import dataclasses
import logging
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from flaresemi import flare22
from flaresemi.case_names import check_name, refuse_alike
from flaresemi.errors import DatasetError, is_one_line, listed, one_line, shown
from flaresemi.image_paths import EXPECTED, image_stem, named_images
from flaresemi.labels import Label, LabelSet, find_mirror_pairs
from flaresemi.records import closest, load_json

logger = logging.getLogger(__name__)

#: (labeled images, label maps, unlabeled images, test images) of the layouts that are understood.
LAYOUTS = {
    "flaresemi": ("labeled_image", "labeled_mask", "unlabeled_image", "test_image"),
    "nnU-Net": ("imagesTr", "labelsTr", "imagesUn", "imagesTs"),
}

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")
_INTEGER = re.compile(r"-?[0-9]{1,18}")

_KEYS = ("name", "channel_names", "modality", "labels", "mirror_pairs", "z_range", "tolerances_mm", "annotated_labels")
_METADATA = (
    "file_ending", "numTraining", "numTest", "description", "licence", "license", "reference", "release",
    "tensorImageSize", "training", "test", "overwrite_image_reader_writer", "converted_by", "dataset_name", "citation",
)  # fmt: skip

#: Of a number in dataset.json: beyond it an integer is no float.
_LARGEST_NUMBER = sys.float_info.max


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
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotated: tuple[str, ...] | None = None
    label_on_image_grid: bool = False


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


def load_dataset(root: Path) -> Dataset:
    """Finds the cases of a folder in either layout and reads its dataset.json, where there is one.

    Raises:
        DatasetError: no known layout, no labeled case, an image without its label or the reverse, a missing channel,
            a case in two groups, or a dataset.json that cannot be used.
    """
    root = Path(root)
    folders = _folders(root)
    images, masks, unlabeled, test = (root / folder for folder in folders)
    description = _Description(root / "dataset.json")
    numbered = _channels_are_numbered(images, masks)
    labeled = _labeled_cases(_cases(images, numbered), images, masks, description)
    groups = (labeled, _cases(unlabeled, numbered), _cases(test, numbered))
    channels = description.channels or _default_channels(groups)
    for group in groups:
        for case in group:
            if len(case.images) != len(channels):
                raise DatasetError(
                    f"case '{case.id}' has {len(case.images)} channel(s), the dataset has {len(channels)}: "
                    f"{', '.join(channels)}",
                    where=case.images[0],
                    fix="one file per channel: CASE_0000, CASE_0001, ...",
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
    """What the dataset.json of a folder says of its labels; no case is looked for.

    Returns:
        The organs, None where no file names them; and the organs that a case annotates, for cases that do not
        annotate all.

    Raises:
        DatasetError: the file cannot be used.
    """
    description = _Description(Path(root) / "dataset.json")
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
    return [(name, path) for name, path in named_images(folder) if image_stem(path) is not None]


def _channels_are_numbered(images: Path, masks: Path) -> bool:
    """Whether `case_0001` may be channel 1 of `case`: not where label maps are named like that, too."""
    names = {name for name, _ in named_images(images)}
    labels = {name for name, _ in _label_files(masks)}
    without_number = {match["case"] for match in map(_CHANNEL.fullmatch, names) if match}
    return len(names & labels) <= len(without_number & labels)


def _cases(folder: Path, numbered: bool) -> tuple[Case, ...]:
    named = named_images(folder)
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


def _labeled_cases(found: tuple[Case, ...], images: Path, masks: Path, description: "_Description") -> tuple[Case, ...]:
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


def _default_channels(groups: Iterable[tuple[Case, ...]]) -> tuple[str, ...]:
    count = max(len(case.images) for group in groups for case in group)
    return ("CT",) if count == 1 else tuple(f"channel {index}" for index in range(count))


def _refuse_twice(groups: tuple[tuple[Case, ...], ...]) -> None:
    seen: dict[str, Path] = {}
    for group in groups:
        for case in group:
            if case.id in seen:
                raise DatasetError(
                    f"case '{case.id}' is in two groups", where=f"{seen[case.id]} and {case.images[0]}",
                    fix="rename or remove one of them",
                )  # fmt: skip
            seen[case.id] = case.images[0]


class _Description:
    """What a dataset.json says (nnU-Net's keys, version 1 or 2, and ours). An absent file says nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name: str | None = None
        self.channels: tuple[str, ...] | None = None
        self.labels: LabelSet | None = None
        self.annotated: dict[str, tuple[str, ...]] = {}
        if not path.exists():
            return
        content = load_json(path, error=DatasetError)
        if not isinstance(content, dict):
            raise DatasetError("dataset.json must hold an object", where=path)
        for key in content:
            if key not in _KEYS + _METADATA:
                hint = closest(key, _KEYS)
                level = logging.WARNING if hint else logging.INFO
                logger.log(level, "%s: key '%s' is not used%s", path, shown(key), hint)
        self.name = content.get("name")
        if self.name is not None and not isinstance(self.name, str):
            raise self._bad(f"name must be a text, found {shown(repr(self.name))}")
        self.channels = self._channels(content)
        if "labels" in content:
            self.labels = self._label_set(content)
            self.annotated = self._annotated(content)

    def _bad(self, what: str, fix: str | None = None) -> DatasetError:
        return DatasetError(shown(what, 600), where=self.path, fix=fix)

    def _channels(self, content: dict) -> tuple[str, ...] | None:
        named = content.get("channel_names", content.get("modality"))
        if named is None:
            return None
        if not isinstance(named, dict) or sorted(named) != [str(i) for i in range(len(named))]:
            raise self._bad(f'channel_names must be like {{"0": "CT"}}, found {shown(repr(named))}')
        names = tuple(str(named[str(index)]) for index in range(len(named)))
        if not all(map(is_one_line, names)):
            raise self._bad(f"channel_names hold characters that cannot be seen: {', '.join(names)}")
        return names

    def _label_set(self, content: dict) -> LabelSet:
        if "regions_class_order" in content:
            raise self._bad("overlapping regions (regions_class_order) are not supported", "one value per organ")
        values = self._values(content["labels"])
        background = values.pop("background", 0)
        names = tuple(values)
        tolerances = self._per_label(content, "tolerances_mm", names)
        pairs = content.get("mirror_pairs")
        try:
            return LabelSet(
                labels=tuple(
                    Label(
                        name=name,
                        value=value,
                        tolerance_mm=tolerances.get(name),
                        z_range=name in self._names(content.get("z_range", []), "z_range", names),
                    )
                    for name, value in sorted(values.items(), key=lambda item: item[1])
                ),
                background=background,
                mirror_pairs=find_mirror_pairs(names) if pairs is None else tuple((str(a), str(b)) for a, b in pairs),
            )
        except (ValueError, TypeError) as problem:
            raise self._bad(shown(str(problem), 400)) from None

    def _values(self, labels: object) -> dict[str, int]:
        if not isinstance(labels, dict) or not labels:
            raise self._bad('"labels" must be an object like {"background": 0, "liver": 1}')
        if all(isinstance(value, str) and _INTEGER.fullmatch(key) for key, value in labels.items()):
            if len(set(labels.values())) != len(labels):
                raise self._bad(f"two labels have one name: {', '.join(labels.values())}", "one value per organ")
            labels = {name: int(value) for value, name in labels.items()}  # the Medical Decathlon's order
        values: dict[str, int] = {}
        for name, value in labels.items():
            if isinstance(value, list):
                raise self._bad(
                    f"label '{name}' has several values: overlapping regions are not supported", "one value per organ"
                )
            if isinstance(value, str) and _INTEGER.fullmatch(value):
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int):
                raise self._bad(f"label '{name}' must be an integer, found {shown(repr(value))}")
            if name == "ignore":
                raise self._bad(
                    "an ignore label is not supported", 'name the organs a case annotates in "annotated_labels" instead'
                )
            values[name] = value
        return values

    def _annotated(self, content: dict) -> dict[str, tuple[str, ...]]:
        declared = content.get("annotated_labels", {})
        if not isinstance(declared, dict):
            raise self._bad('"annotated_labels" must be an object like {"case_1": ["liver"]}')
        known = self.labels.names if self.labels else ()
        for case, names in declared.items():
            self._names(names, f"annotated_labels of '{case}'", known)
            if not names:
                raise self._bad(
                    f"annotated_labels of '{case}' names no label", "move a case without labels to the unlabeled ones"
                )
        return {case: tuple(names) for case, names in declared.items()}

    def _names(self, names: object, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        if not isinstance(names, list):
            raise self._bad(f"{key} must be a list of label names")
        for name in names:
            if name not in known:
                raise self._bad(f"{key} names '{name}', which is not a label{closest(str(name), known)}")
        return tuple(names)

    def _per_label(self, content: dict, key: str, known: tuple[str, ...]) -> dict[str, float]:
        declared = content.get(key, {})
        if not isinstance(declared, dict):
            raise self._bad(f'"{key}" must be an object like {{"liver": 5}}')
        self._names(list(declared), key, known)
        for name, value in declared.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_NUMBER:
                raise self._bad(f"{key} of '{name}' must be a positive number, found {shown(repr(value))}")
        return {name: float(value) for name, value in declared.items()}
