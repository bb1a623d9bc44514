"""Texts in pictures stand as they are."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from flaresemi.labels import Label, LabelSet
from flaresemi.reporting.curves import save_curves
from flaresemi.reporting.overlay import save_overlay

#: What matplotlib would set as a formula, or fail at, or leave out.
NAMES = (r"a$\nope$b", "$x$", r"\$5 and $6$", "_hidden", "50 % {of} ^it", "a & b #1 ~", r"\input{/etc/hostname}")


@pytest.fixture
def literal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts of the pictures that are saved, each of which must be literal."""
    texts: list[str] = []
    original = Figure.savefig

    def look(figure: Figure, *arguments: object, **settings: object) -> None:
        for text in figure.findobj(Text):
            assert not text.get_parse_math() and not text.get_usetex()
            texts.append(text.get_text())
        original(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", look)
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # as a user may have set for all programs
    return texts


def test_names_of_organs_and_cases_are_no_formulas(literal: list[str], tmp_path) -> None:
    labels = LabelSet(labels=tuple(Label(name=name, value=value) for value, name in enumerate(NAMES, 1)))
    indices = np.arange(8 * 8 * 8).reshape(8, 8, 8) % (labels.count + 1)
    for name in NAMES:
        save_overlay(
            tmp_path / "a.png", indices.astype(np.float32), indices, indices, labels, (1.0, 1.0, 1.0), title=name
        )
        assert name in literal
    assert set(NAMES) <= set(literal)


def test_names_of_organs_in_curves_are_no_formulas(literal: list[str], tmp_path) -> None:
    scores = dict.fromkeys(NAMES, 0.5)
    save_curves(tmp_path / "curves.png", [{"iteration": 1, "validation_dice": scores, "validation_mean": 0.5}])
    assert {*NAMES, "mean"} <= set(literal)
