"""The content of a dataset.json: nnU-Net's keys, of version 1 or 2, and ours."""

import dataclasses
import difflib
import logging
import re
import sys
from pathlib import Path

from flaresemi.channels import meant_scheme
from flaresemi.errors import DatasetError, is_one_line, shown
from flaresemi.labels import Label, LabelSet
from flaresemi.organ_codes import read_codes
from flaresemi.records import closest, load_json
from flaresemi.region_order import written_values
from flaresemi.sides import find_sides

logger = logging.getLogger(__name__)

_INTEGER = re.compile(r"-?[0-9]{1,18}")

_KEYS = (
    "name",
    "channel_names",
    "modality",
    "labels",
    "mirror_pairs",
    "z_range",
    "tolerances_mm",
    "annotated_labels",
    "groups",
    "regions_class_order",
    "codes",
)
#: What may not go unread because of its spelling, likeliest first.
_MATTERING = ("labels", *(key for key in _KEYS if key not in ("labels", "name")))

_TEXTS = ("description", "licence", "license", "reference", "release", "citation")

_METADATA = (
    "file_ending",
    "numTraining",
    "numTest",
    "tensorImageSize",
    "training",
    "test",
    "overwrite_image_reader_writer",
    "converted_by",
    "dataset_name",
    *_TEXTS,
)

#: A file with no more than these may leave out the labels: it says nothing that FLARE22's organs would contradict.
_WITHOUT_LABELS = ("name", "channel_names", "modality", "groups", *_TEXTS)

#: From here on an unknown key is a misspelt one, provided that the right one is missing. Chosen: `label`, `channels`,
#: `modalities`, `tolerance` and `classLabels` are, `labelsTr` beside `labels` is not.
_ALIKE = 0.7

#: Names of background, where they stand at its value; the first two are background at any value.
_BACKGROUND = (
    "background",
    "bg",
    "none",
    "unlabeled",
    "unlabelled",
    "unlabeled voxels",
    "clear label",
    "no label",
    "empty",
    "nothing",
    "void",
    "air",
    "other",
    "others",
    "exterior",
    "outside",
    "null",
    "hintergrund",
    "fond",
    "fondo",
)
_ALWAYS_BACKGROUND = _BACKGROUND[:2]

#: Of a number in dataset.json: beyond it an integer is no float.
_LARGEST_NUMBER = sys.float_info.max

_MEND = (
    "correct it: often a comma, quote or bracket is too many or too few, there or in the line before; the text is UTF-8"
)


class Description:
    """A dataset.json, checked. An absent file says nothing.

    Attributes:
        path: The file.
        name: The dataset's name.
        channels: Name of each channel.
        labels: The organs.
        annotated: The organs that a case annotates, for cases that do not annotate all.
        groups: The cases of each group, for example the scans of a patient.

    Raises:
        DatasetError: it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name: str | None = None
        self.channels: tuple[str, ...] | None = None
        self.labels: LabelSet | None = None
        self._ignore: int | None = None
        self.annotated: dict[str, tuple[str, ...]] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        if not path.exists():
            return
        content = load_json(path, error=DatasetError, fix=_MEND)
        if not isinstance(content, dict):
            raise DatasetError("dataset.json must hold an object", where=path, fix='it looks like {"labels": {...}}')
        self._check_keys(content)
        self.name = content.get("name")
        if self.name is not None and not isinstance(self.name, str):
            raise self._bad(f"name must be a text, found {shown(repr(self.name))}")
        self.channels = self._channels(content)
        self.groups = self._groups(content)
        if "labels" in content:
            self.labels = self._label_set(content)
            self.annotated = self._annotated(content)
        else:
            self._refuse_other_description(content)

    def _bad(self, what: str, fix: str | None = None) -> DatasetError:
        return DatasetError(shown(what, 600), where=self.path, fix=fix)

    def _check_keys(self, content: dict) -> None:
        """Refuses a key that is misspelt: what it says would be missing."""
        present = {*content, *(("channel_names", "modality") if {"channel_names", "modality"} & content.keys() else ())}
        for key in content:
            if key in _KEYS + _METADATA:
                continue
            if key == "dataset" and isinstance(content[key], dict):  # nnU-Net then passes its folders over
                raise self._bad(
                    "'dataset' lists the cases' files, which may lie anywhere; only the dataset's own folders are read",
                    "link the files as imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, and remove the key",
                )
            meant = next((known for known in _MATTERING if known not in present and _alike(key, known)), None)
            if meant is not None:
                raise self._bad(
                    f"unknown key '{key}' (did you mean '{meant}'?)",
                    "correct the key, or remove it where it means something else",
                )
            hint = closest(key, _KEYS)
            (logger.warning if hint else logger.info)("%s: key '%s' is not used%s", self.path, shown(key), hint)

    def _refuse_other_description(self, content: dict) -> None:
        """FLARE22's organs are for a file that describes nothing else."""
        is_ct = self.channels is None or [channel.strip().lower() for channel in self.channels] == ["ct"]
        more = [key for key in content if key not in _WITHOUT_LABELS]
        if more or not is_ct:
            told = f"it has {', '.join(map(repr, more[:3]))}" if more else "its channels are not those of FLARE22"
            raise self._bad(
                f'"labels" is missing: nothing names the organs, and {told}',
                'add the organs with their values: "labels": {"background": 0, "liver": 1, ...}',
            )
        logger.warning("%s names no organs: FLARE22's are assumed", self.path)

    def _channels(self, content: dict) -> tuple[str, ...] | None:
        key = "channel_names" if content.get("channel_names") is not None else "modality"
        named = content.get(key)
        if named is None:
            return None
        if isinstance(named, str):
            named = [named]
        if isinstance(named, list):
            named = {str(index): name for index, name in enumerate(named)}
        by_number = _by_number(named)
        if not by_number or sorted(by_number) != list(range(len(named))):
            raise self._bad(
                f'{key} must be like {{"0": "CT"}}, numbered from 0, found {shown(repr(content[key]), 200)}',
                'write {"0": "CT"} for one channel, {"0": "T1", "1": "T2"} for two',
            )
        if not all(map(is_one_line, by_number.values())):
            raise self._bad(f"{key} hold characters that cannot be seen: {', '.join(by_number.values())}")
        for name in by_number.values():
            if (meant := meant_scheme(name)) is not None:
                logger.warning(
                    "%s: channel '%s' is normalized by its mean and SD; did you mean '%s'?", self.path, name, meant
                )
        return tuple(by_number[index] for index in sorted(by_number))

    def _groups(self, content: dict) -> dict[str, tuple[str, ...]]:
        declared = content.get("groups", {})
        if not isinstance(declared, dict) or not all(
            isinstance(cases, list) and all(isinstance(case, str) for case in cases) for cases in declared.values()
        ):
            raise self._bad('"groups" must be an object like {"patient 1": ["scan_1", "scan_2"]}')
        if not all(map(is_one_line, declared)):
            raise self._bad(f"groups hold characters that cannot be seen: {', '.join(declared)}")
        owner: dict[str, str] = {}
        for group, cases in declared.items():
            for case in cases:
                if owner.setdefault(case, group) != group:
                    raise self._bad(
                        f"\"groups\": case '{case}' stands in '{owner[case]}' and in '{group}'",
                        "a case belongs to one group: make them one, or remove it from the other",
                    )
        return {group: tuple(cases) for group, cases in declared.items()}

    def _label_set(self, content: dict) -> LabelSet:
        declared = self._values(content["labels"])
        alone = {name: values[0] for name, values in declared.items() if len(values) == 1}
        background = self._take_background(alone, may_be_all=len(alone) < len(declared))
        organs = {name: values for name, values in declared.items() if len(values) > 1 or name in alone}
        if len(organs) == len(alone):  # no regions
            organs = dict(sorted(organs.items(), key=lambda item: item[1]))
        names = tuple(organs)
        tolerances = self._per_label(content, "tolerances_mm", names)
        tubes = self._names(content.get("z_range", []), "z_range", names)
        try:
            labels = LabelSet(
                labels=tuple(
                    Label(
                        name=name,
                        value=values[0],
                        tolerance_mm=tolerances.get(name),
                        z_range=name in tubes,
                        more_values=values[1:],
                    )
                    for name, values in organs.items()
                ),
                background=background,
                ignore=self._ignore,
            )
            read_codes(content.get("codes", {}), names)  # they count in prediction alone, and are refused at once
            if (order := content.get("regions_class_order")) is not None and labels.has_regions:
                labels = dataclasses.replace(labels, written_values=written_values(labels, order, self.path))
            return self._mirrored(labels, content)
        except (ValueError, TypeError) as problem:
            raise self._bad(shown(str(problem), 400)) from None

    def _values(self, labels: object) -> dict[str, tuple[int, ...]]:
        """The values of every label: one, or several of a region."""
        if not isinstance(labels, dict) or not labels:
            raise self._bad('"labels" must be an object like {"background": 0, "liver": 1}')
        if all(isinstance(value, str) and _INTEGER.fullmatch(key) for key, value in labels.items()):
            if len(set(labels.values())) != len(labels):
                raise self._bad(f"two labels have one name: {', '.join(labels.values())}", "one value per organ")
            labels = {name: int(value) for value, name in labels.items()}  # the Medical Decathlon's order
        values: dict[str, tuple[int, ...]] = {}
        for name, declared in labels.items():
            parts = declared if isinstance(declared, list) else [declared]
            if not parts:
                raise self._bad(f"label '{name}' has no value", "give it one, or a list: [1, 2, 3]")
            if _plain(name) in ("ignore", "ignore label"):
                self._ignore = self._value(name, declared)
                continue
            values[name] = tuple(dict.fromkeys(self._value(name, value) for value in parts))
        return values

    def _value(self, name: str, value: object) -> int:
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._bad(f"label '{name}' must be an integer, found {shown(repr(value))}")
        return value

    def _take_background(self, values: dict[str, int], *, may_be_all: bool) -> int:
        """Removes background from the labels.

        It is value 0, whatever that is called; another value only where a label is called so and 0 is not.

        Args:
            values: Of the labels that have one alone.
            may_be_all: There are others.

        Returns:
            Its value.
        """
        at_zero = [name for name, value in values.items() if value == 0]
        if len(at_zero) > 1:
            raise self._bad(f"'{at_zero[0]}' and '{at_zero[1]}' both have value 0, which is background", "name one")
        named = [name for name in values if _plain(name) in _ALWAYS_BACKGROUND and values[name] != 0]
        zero_is_background = bool(at_zero) and _plain(at_zero[0]) in _BACKGROUND
        if named and (zero_is_background or len(named) > 1 or _plain(named[0]) != "background"):
            raise self._bad(
                f"label '{named[-1]}' is called background and has value {values[named[-1]]}, but background is value 0"
                + (f", here called '{at_zero[0]}'" if at_zero else ""),
                "call the label of value 0 background, and the others by what they are",
            )
        if named:
            zero = f"value 0 is '{shown(at_zero[0])}'" if at_zero else "value 0 is no label"
            logger.warning('%s: background is value %d, as "labels" says; %s', self.path, values[named[0]], zero)
            return values.pop(named[0])
        for name, value in values.items():
            if value != 0 and _plain(name) in _BACKGROUND:
                logger.warning("%s: '%s' is learned as an organ: background is value 0", self.path, shown(name))
        if at_zero == list(values) and not may_be_all:
            raise self._bad(
                f"a dataset needs at least one label besides background, which is value 0 (here '{at_zero[0]}')",
                'number the organs from 1: {"background": 0, "liver": 1}',
            )
        if at_zero:
            if not zero_is_background:
                logger.warning(
                    "%s: value 0 is background, whatever it is called: '%s' is no organ", self.path, shown(at_zero[0])
                )
            del values[at_zero[0]]
        return 0

    def _mirrored(self, labels: LabelSet, content: dict) -> LabelSet:
        """The labels with their left and right pairs.

        Raises:
            ValueError: pairs that are declared contradict the regions.
        """
        pairs = self._mirror_pairs(content, labels.names)
        try:
            return dataclasses.replace(labels, mirror_pairs=pairs)
        except ValueError as problem:
            if "mirror_pairs" in content:
                raise
            logger.warning("%s: nothing is mirrored left to right: %s", self.path, shown(str(problem), 400))
            return dataclasses.replace(labels, mirror_pairs=None)

    def _mirror_pairs(self, content: dict, names: tuple[str, ...]) -> tuple[tuple[str, str], ...] | None:
        """The pairs that are declared, or else those that the names tell; None: left and right are unknown."""
        if "mirror_pairs" not in content:
            sides = find_sides(names)
            return None if sides.unpaired else sides.pairs
        declared = content["mirror_pairs"]
        if declared is None:
            return None
        if not isinstance(declared, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in declared):
            raise self._bad(
                f"mirror_pairs must be a list of pairs, found {shown(repr(declared), 200)}",
                'write [["right kidney", "left kidney"]]; [] where no organ has a partner; null for no mirroring',
            )
        for pair in declared:
            self._names(pair, "mirror_pairs", names)
        return tuple((one, other) for one, other in declared)

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


def _by_number(named: object) -> dict[int, str]:
    """The names of a table with numbers for keys; none where it is anything else."""
    if not isinstance(named, dict) or not all(_INTEGER.fullmatch(key) for key in named):
        return {}
    if any(isinstance(name, bool | dict | list) or name in (None, "") for name in named.values()):
        return {}
    return {int(key): str(name) for key, name in named.items()}


def _plain(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.replace("_", " ").lower()))


def _alike(key: str, known: str) -> bool:
    """Whether a key is another one with letters changed, in other capitals or with other separators."""
    one, other = (re.sub(r"[\W_]", "", word).lower() for word in (key, known))
    return difflib.SequenceMatcher(None, one, other).ratio() >= _ALIKE
