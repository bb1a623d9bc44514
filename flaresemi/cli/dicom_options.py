"""The options of flaresemi_predict for results as DICOM objects."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flaresemi.errors import ConfigError, is_one_line
from flaresemi.io.dicom_headers import ENDINGS, LONG, NOT_CLINICAL
from flaresemi.organ_codes import OrganCode, load_codes
from flaresemi.records import load_json

if TYPE_CHECKING:
    from flaresemi.inference.dicom_output import DicomOutput
    from flaresemi.inference.segmenter import ImageSegmenter

#: What --format calls label maps as files of images.
FILES = "image"

_ONLY_DICOM = ("organ_codes", "model_name", "content_label")


def add_dicom_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--format` and what goes with its formats of DICOM."""
    parser.add_argument(
        "--format",
        choices=(FILES, *ENDINGS),
        default=FILES,
        help="label maps as files like the images; of DICOM series also as DICOM segmentations (needs highdicom: pip "
        'install "flaresemi[dicom]") or RT structure sets (default: image)',
    )
    group = parser.add_argument_group("DICOM objects (--format dicom-seg or rtstruct)")
    add_codes_option(group)
    group.add_argument("--model-name", type=_text, metavar="TEXT", help="what the algorithm is called [flaresemi]")
    group.add_argument(
        "--content-label", type=_text, metavar="TEXT", help=f"what the objects are labeled with [{NOT_CLINICAL}]"
    )


def add_codes_option(parser: argparse._ActionsContainer) -> None:
    """Adds `--organ-codes`."""
    parser.add_argument(
        "--organ-codes",
        type=Path,
        metavar="FILE",
        help='JSON file with the "codes" of organs (default: DATASET/dataset.json; without, SNOMED CT by their names)',
    )


def _text(text: str) -> str:
    if not text.strip() or len(text) > LONG or "\\" in text or not is_one_line(text):
        raise argparse.ArgumentTypeError(f"must be one line of 1 to {LONG} characters without backslashes")
    return text.strip()


def ending_of(options: argparse.Namespace) -> str | None:
    """What the names of the results end with; None: as their images do.

    Raises:
        ConfigError: an option is given that has no effect without a format of DICOM.
    """
    if options.format != FILES:
        return ENDINGS[options.format]
    given = [name for name in _ONLY_DICOM if getattr(options, name) is not None]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is written into DICOM objects alone",
            fix="add --format dicom-seg or rtstruct",
        )
    return None


def dicom_output(options: argparse.Namespace, segmenter: "ImageSegmenter") -> "DicomOutput | None":
    """How results are written as DICOM objects; None: they are not.

    Raises:
        ConfigError: the file with codes cannot be used.
    """
    if options.format == FILES:
        return None
    from flaresemi.inference.dicom_output import DicomOutput  # and torch, which reading the options does not need

    return DicomOutput(
        format=options.format,
        labels=segmenter.labels,
        codes=organ_codes(options, segmenter.labels.names),
        algorithm=options.model_name or "flaresemi",
        models=segmenter.models,
        label=options.content_label or NOT_CLINICAL,
    )


def organ_codes(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, OrganCode]:
    """The user's own codes of organs, from the file of `--organ-codes` or the dataset's.

    Args:
        names: Of the model's organs.

    Raises:
        ConfigError: the file cannot be used.
    """
    if options.organ_codes is not None:
        return load_codes(options.organ_codes, names)
    usual = options.dataset / "dataset.json"
    if not usual.exists():
        return {}
    content = load_json(usual, error=ConfigError, fix="correct it there")
    declared = content.get("codes") if isinstance(content, dict) else None
    if not isinstance(declared, dict):
        return {}
    # The dataset of the current folder need not be that of the model.
    found = load_codes(usual, tuple(declared))
    return {name: code for name, code in found.items() if name in names}
