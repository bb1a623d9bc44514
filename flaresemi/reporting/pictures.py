"""What all pictures have in common: every text in them stands as it is, whatever it looks like to matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_figure(figure: Figure, target: Path | io.BytesIO, **settings: Any) -> None:
    """Saves a figure; a text with two dollar signs, say, is no formula in it.

    Args:
        target: Where to.
        settings: Of matplotlib's `savefig`.
    """
    from matplotlib.text import Text  # takes a second, and only pictures need it

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    figure.savefig(target, **settings)


def add_legend(axes: Axes, handles: Sequence[Artist], names: Sequence[str], **settings: Any) -> None:
    """Adds a legend of all handles; matplotlib itself would leave names out that begin with an underscore.

    Args:
        settings: Of matplotlib's `legend`.
    """
    legend = axes.legend(handles=handles, labels=[" "] * len(handles), **settings)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
