"""Inputs and outputs that the user names, as cases and files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flaresemi.case_names import case_file, check_name, refuse_alike
from flaresemi.dataset import LAYOUTS, TEST_LABELS, Case, find_images
from flaresemi.errors import ConfigError, ImageError, listed, shown
from flaresemi.files import read_text
from flaresemi.image_paths import (
    IMAGE_ENDINGS,
    holds_slices,
    image_name,
    image_stem,
    label_stem,
    named_images,
    visible_files,
)
from flaresemi.inference.prediction_records import load_prediction
from flaresemi.io.image_file import image_ending
from flaresemi.system_errors import is_shortage

#: Folders of a dataset, by name.
_DATASET_FOLDERS = {name for names in LAYOUTS.values() for name in names} | set(TEST_LABELS.values())


def find_cases(source: Path, *, channels: int) -> tuple[Case, ...]:
    """The cases that an input names.

    Args:
        source: An image, which may be a folder of DICOM slices; a folder of images; or a text file with one path per
            line (empty lines and lines that begin with # are skipped; relative paths start at the current folder or,
            where there is nothing, at the list's folder).
        channels: How many files an image has. With one, file names are free; with more, they end with `_0000` and so
            on, and naming one file of a case is enough.

    Raises:
        ConfigError: the input is none of these, or two cases have one name.
        DatasetError: a folder without images, or one whose files do not form cases.
        ImageError: a file of the list is not there.
    """
    if source.is_dir() and not holds_slices(source):
        return find_images(source)
    if source.is_dir() and named_images(source):
        raise ConfigError(
            "DICOM slices and other images in one folder: it is not clear which are meant",
            where=source,
            fix="put the slices into a folder of their own",
        )
    if image_name(source) is not None:
        return (_case_of(source, channels),)
    if source.suffix.lower() != ".txt":
        raise ConfigError(
            "the input is neither an image nor a folder nor a list (.txt)",
            where=source,
            fix="of a DICOM series, name the folder that holds its slices",
        )
    paths = _listed(source)
    missing = [path for path in paths if not _exists(path)]
    if missing:
        first = shown(str(missing[0]), 300)
        raise ImageError(f"{len(missing)} file(s) of the list are not there", where=f"{first} in {source}")
    cases: dict[str, Case] = {}
    for path in paths:
        case = _case_of(path, channels)
        known = cases.setdefault(case.id, case)
        if known.images != case.images:
            raise ConfigError(
                f"two cases are called '{case.id}', their label maps would overwrite each other",
                where=f"{known.images[0]} and {case.images[0]}",
                fix="predict them into different folders",
            )
    refuse_alike(cases, where=source)
    return tuple(cases.values())


def named_by_output(cases: tuple[Case, ...], output: Path, ending: str | None = None) -> tuple[Case, ...]:
    """The cases; one whose output is a file is called like that file, since images of several may have one name.

    Args:
        cases: Of the input.
        output: What the user named.
        ending: Of the results' names; None: that of the images.

    Raises:
        DatasetError: no case may be called so.
    """
    if len(cases) != 1 or not _is_file_name(output, ending):
        return cases
    endings = () if ending is None else (ending, ending[ending.rindex(".") :])
    stems = (output.name[: -len(each)] for each in endings if output.name.lower().endswith(each))
    stem = next(stems, None) or image_stem(output) or ""
    return (dataclasses.replace(cases[0], id=check_name(stem, where=output)),)


def results_folder(output: Path, ending: str | None = None) -> Path:
    """The folder of the results of an output, which may be one file."""
    return output.parent if _is_file_name(output, ending) else output


def _is_file_name(output: Path, ending: str | None) -> bool:
    name = output.name.lower()
    is_named_so = image_stem(output) is not None if ending is None else name.endswith(ending[ending.rindex(".") :])
    return is_named_so and not output.is_dir()


def output_paths(cases: Sequence[Case], source: Path, output: Path, ending: str | None = None) -> list[Path]:
    """Where the label map of each case goes: into a folder, named like the case with the ending of its image.

    That of a DICOM series, or of a file that another package reads, is a .nii.gz file.

    Args:
        cases: Of the input.
        source: The input.
        output: What the user named.
        ending: Of the results' names; None: that of the images.

    Raises:
        ConfigError: an image file is named as the output of a folder or list, or for results that are none.
    """
    if ending is not None and image_stem(output) is not None and not output.is_dir():
        raise ConfigError(
            f"the output is named like an image, and DICOM objects are written (*{ending})",
            where=output,
            fix=f"name a folder, or for one image CASE{ending}",
        )
    if _is_file_name(output, ending):
        if len(cases) != 1 or image_name(source) is None:
            raise ConfigError("the output must be a folder, it is named like an image", where=output)
        return [output]
    if output.exists() and not output.is_dir():
        raise ConfigError("the output exists and is no folder", where=output)
    if ending is not None:
        return [case_file(output, case.id, ending) for case in cases]
    endings = [".nii.gz" if case.images[0].is_dir() else image_ending(case.images[0]) for case in cases]
    endings = [ending if ending in IMAGE_ENDINGS else ".nii.gz" for ending in endings]
    return [case_file(output, case.id, ending) for case, ending in zip(cases, endings, strict=True)]


def _case_of(path: Path, channels: int) -> Case:
    """The case that a file or a folder of slices belongs to, with its other channels beside it."""
    stem = image_name(path)
    if stem is None:
        raise ImageError("neither an image file by its name nor a folder with DICOM slices", where=path)
    ending = "" if path.is_dir() else path.name[len(stem) :]
    base, _, number = stem.rpartition("_")
    numbered = bool(base) and len(number) == 4 and number.isdigit()
    if channels == 1:
        return Case(id=check_name(base if numbered and number == "0000" else stem, where=path), images=(path,))
    if not numbered:
        raise ImageError(f"the model has {channels} channels: expected a name that ends with _0000{ending}", where=path)
    images = tuple(path.with_name(f"{base}_{channel:04d}{ending}") for channel in range(channels))
    for image in images:
        if not image.exists():
            raise ImageError(f"a channel of case '{base}' is missing; the model has {channels}", where=image)
    return Case(id=check_name(base, where=path), images=images)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no file system takes such a name
        return False


def _listed(path: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in read_text(path, "utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ConfigError("the list is not a text file in UTF-8", where=path) from None
    except OSError as problem:
        if is_shortage(problem):
            raise
        raise ConfigError(f"the list cannot be read: {problem.strerror}", where=path) from None
    named = [Path(line) for line in lines if line and not line.startswith("#")]
    if not named:
        raise ConfigError("the list names no image", where=path)
    return [entry if _exists(entry) or entry.is_absolute() else path.parent / entry for entry in named]


def refuse_overwriting(jobs: Sequence[tuple[Case, Path]], source: Path, *, overwrite: bool = False) -> None:
    """Checks that no label map would take the place of an image, or lie among images or the label maps of a dataset.

    Args:
        jobs: Cases and the files for their label maps.
        source: The input that named the cases.
        overwrite: Whether the user allowed to write into a dataset's folders.

    Raises:
        ConfigError: one would.
    """
    inputs = {image.resolve() for case, _ in jobs for image in case.images}
    folders = {image.parent for image in inputs}
    for case, output in jobs:
        if output.parent.resolve() in inputs:
            raise ConfigError("the output folder is a folder of DICOM slices", where=output.parent, fix="name another")
        if output.resolve() in inputs:
            raise ConfigError(f"the label map of case '{case.id}' would overwrite an image", where=output)
    # Label maps among the images would be taken for images the next time.
    outputs = {output.parent.resolve() for _, output in jobs}
    if folders & outputs and image_name(source) is None:
        raise ConfigError(
            "the output folder is the folder of the images", where=(folders & outputs).pop(), fix="name another with -o"
        )
    for folder in () if overwrite else outputs:
        theirs = [path.name for path in _foreign_files(folder)] if folder.name in _DATASET_FOLDERS else []
        if theirs:
            raise ConfigError(
                f"the output folder belongs to a dataset, and not all in it was predicted: {listed(theirs)}",
                where=folder,
                fix="name another folder with -o; --overwrite writes into this one",
            )


def _foreign_files(folder: Path) -> list[Path]:
    """The images and label maps in a folder that are no predictions."""
    return [path for path in visible_files(folder) if label_stem(path) is not None and load_prediction(path) is None]
