"""What the name of an image channel says of its intensities."""

import re
from typing import Literal

#: How the intensities of a channel are changed; see `IntensityPlan`.
Scheme = Literal[
    "ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1", "zscore_crop", "zscore_nonzero", "as_is", "min_max"
]

#: Names that ask for a scheme, in small letters; all others mean `zscore`. Source: nnU-Net v2, whose older versions
#: say `rescale_0_1`.
_SCHEMES: dict[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rescale_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}

_SPELLINGS = {"nonorm": "noNorm", "ct": "CT"}


def is_ct(channel: str) -> bool:
    """Whether a channel of this name holds Hounsfield units."""
    return scheme_of(channel) == "ct"


def scheme_of(channel: str) -> Scheme:
    """How a channel of this name is normalized, as nnU-Net v2 takes its name; capitals do not count."""
    return _SCHEMES.get(channel.strip().lower(), "zscore")


def meant_scheme(channel: str) -> str | None:
    """The name that asks for a scheme and that this one differs from in its separators alone; mostly None."""
    if channel.strip().lower() in _SCHEMES:
        return None
    letters = _letters(channel)
    return next((_SPELLINGS.get(name, name) for name in _SCHEMES if _letters(name) == letters), None)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
