"""A color for every organ, the same in every picture."""

import colorsys

#: Colors that stay apart on gray, in an order that keeps neighbors in FLARE22's numbering unlike each other.
_FIRST = (
    "#e6a03c", "#3cb4e6", "#a05ae6", "#f0e64b", "#e63c3c", "#3c5ae6", "#5ae6b4",
    "#e65aaa", "#46b946", "#ff8c78", "#a0e63c", "#c88c64", "#6edcff", "#d2a0ff",
)  # fmt: skip

#: Turning the hue by the golden ratio never comes back close to an earlier one soon.
_GOLDEN = 0.6180339887


def organ_color(index: int) -> tuple[float, float, float]:
    """Red, green and blue (0 to 1) of the organ with this internal index (1 and up)."""
    if index < 1:
        raise ValueError(f"organs count from 1, found {index}")
    if index <= len(_FIRST):
        code = _FIRST[index - 1]
        return int(code[1:3], 16) / 255, int(code[3:5], 16) / 255, int(code[5:7], 16) / 255
    return colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, (0.55, 0.85)[index % 2], 0.95)
