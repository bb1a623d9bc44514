"""Shared by all pictures: text is shown literally, whatever it looks like to matplotlib."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaresemi.files import passing_folder

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(**settings: Any) -> Figure:
    """An empty figure.

    Args:
        settings: Of matplotlib's `Figure`.
    """
    _load_matplotlib()
    from matplotlib.figure import Figure

    return Figure(**settings)


@functools.cache
def _load_matplotlib() -> None:
    """Imports it, which takes a second, so only pictures do; it leaves nothing in the home folder, and needs none.

    It keeps a list of the fonts and the user's settings there; now it reads and writes them in a folder that goes at
    once, unless the user named one. So pictures do not depend on those settings either.
    """
    with passing_folder("MPLCONFIGDIR"):
        import matplotlib.font_manager  # noqa: F401


def save_figure(figure: Figure, target: Path | io.BytesIO, **settings: Any) -> None:
    """Saves a figure; a text with two dollar signs, say, is no formula in it.

    Args:
        target: Where to.
        settings: Of matplotlib's `savefig`.
    """
    from matplotlib.text import Text

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
