"""Checks of a single image: the same rules for training data and for images that are predicted later."""

import re
from collections.abc import Iterator, Sequence

from flaresemi.channels import Scheme, is_ct, scheme_of
from flaresemi.conventions import NNUNET_ONLY
from flaresemi.errors import shown
from flaresemi.planning.findings import Finding
from flaresemi.plans import ChannelFacts

#: A CT whose middle is denser than this everywhere, or that spans less than the second number, is not in HU. Chosen:
#: bone is about 1000 at most, and only a small part; the range from air to soft tissue is 1000.
_HU_MIDDLE_LIMIT = 700.0
_HU_LEAST_RANGE = 100.0

#: What DICOM calls the scans that channels of these names hold. A name that has none of these words says nothing.
_MODALITIES = {
    "CT": ("ct", "cta", "cbct", "ncct", "cect", "ldct", "hu"),
    "MR": (
        "mr",
        "mri",
        "mra",
        "t1",
        "t1w",
        "t1c",
        "t1ce",
        "t1gd",
        "t1n",
        "t2",
        "t2w",
        "t2f",
        "flair",
        "dwi",
        "adc",
        "swi",
        "pd",
        "pdw",
        "bold",
        "tof",
        "dixon",
    ),
    "PT": ("pet", "pt", "suv", "fdg"),
}

#: Of schemes that measure nothing: the lowest and the highest value that they are meant for, and what they are.
_AS_THEY_ARE = {
    "none": (-65504.0, 65504.0, "is taken as it is, up to ±65504: half precision ends there"),
    "rgb_to_0_1": (0.0, 255.0, "is divided by 255: 8 bits are expected"),
}

#: Objects that are no scan, whatever a channel is called.
_NO_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "PR", "SR", "KO", "DOC")


def check_image(
    case_id: str,
    files: Sequence[str],
    channels: tuple[str, ...],
    facts: Sequence[ChannelFacts],
    *,
    modalities: Sequence[str] = (),
    non_finite: int = 0,
    schemes: Sequence[Scheme] = (),
) -> Iterator[Finding]:
    """Judges what was seen of an image, without comparing it with others.

    Args:
        files: One per channel; empty where they are not known.
        channels: Their names, in the dataset or the model.
        facts: Their intensities.
        modalities: What DICOM calls each of them; "" or none where no file says it.
        non_finite: Voxels that were NaN or infinite.
        schemes: How the channels are normalized; none: as their names ask for.
    """

    def warning(problem: str, message: str, remedy: str, channel: int = 0) -> Finding:
        return Finding(
            case_id=case_id,
            severity="warning",
            problem=problem,
            file=files[channel] if files else "",
            message=message,
            remedy=remedy,
        )

    if non_finite:
        what = f"{non_finite} voxels are NaN or infinite, or beyond ±1e30"
        yield warning("not finite", what, "they are read as the lowest value of the channel")
    for index, (name, modality) in enumerate(zip(channels, modalities, strict=False)):
        expected = expected_modality(name)
        no_scan = modality.split(", ")[0] in _NO_SCANS
        if modality and (no_scan or (expected is not None and modality != expected)):
            what = f"the series is {shown(modality, 20)} by its headers, channel '{name}' is {expected or 'a scan'}"
            yield warning("modality", what, "see whether this is the series that is meant", index)
    schemes = schemes or [scheme_of(name) for name in channels]
    for index, (name, channel, scheme) in enumerate(zip(channels, facts, schemes, strict=True)):
        if is_ct(name) and (
            channel.middle_05 > _HU_MIDDLE_LIMIT or channel.maximum - channel.minimum < _HU_LEAST_RANGE
        ):
            found = f"intensities from {channel.minimum:g} to {channel.maximum:g} do"
            if channel.minimum == channel.maximum:
                found = f"every voxel is {channel.minimum + 0.0:g}, which does"
            what = f"{found} not look like Hounsfield units"
            yield warning("no HU", what, 'rescale them, or name the channel otherwise ("channel_names")', index)
        elif channel.minimum == channel.maximum:
            yield warning(
                "constant", f"every voxel is {channel.minimum + 0.0:g}", "see whether the export failed", index
            )
        elif scheme in _AS_THEY_ARE:
            low, high, expected = _AS_THEY_ARE[scheme]
            if channel.minimum < low or channel.maximum > high:
                what = f"intensities from {channel.minimum:g} to {channel.maximum:g}, channel '{name}' {expected}"
                yield warning("intensities", what, 'name the channel otherwise ("channel_names"), or rescale it', index)
        elif channel.stray and not is_ct(name):
            what = (
                f"{channel.stray} voxel(s) are far beyond all others (intensities from {channel.minimum:g} to "
                f"{channel.maximum:g}, nearly all from {channel.middle_05:g} to {channel.middle_95:g})"
            )
            done = "they count as all others" if scheme in NNUNET_ONLY else "they are clipped"
            yield warning("stray voxels", what, f"{done}; see whether the file is damaged", index)


def expected_modality(channel: str) -> str | None:
    """DICOM's modalities of a channel of this name; None where the name does not say it."""
    words = set(re.split(r"[^a-z0-9]+", channel.lower()))
    found = [modality for modality, names in _MODALITIES.items() if words & set(names)]
    return found[0] if len(found) == 1 else None
