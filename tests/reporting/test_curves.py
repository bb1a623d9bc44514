import matplotlib.image
import numpy as np
import pytest

from flaresemi.reporting import curves
from flaresemi.reporting.curves import save_curves


def row(epoch, **more):
    return {
        "iteration": 50 * epoch, "epoch": epoch, "loss": 1 / epoch, "learning_rate": 1e-3 / epoch, "seconds": 25.0,
    } | more  # fmt: skip


ROWS = [
    row(
        epoch,
        **({"validation_dice": {"liver": 0.1 * epoch, "spleen": 0.5}, "validation_mean": 0.4} if epoch % 2 else {}),
    )
    for epoch in range(1, 8)
]


@pytest.fixture
def drawn(monkeypatch):
    """Every line that is drawn, by the title of its axes and its label."""
    lines = {}

    def remember(figure, path, **options):
        for axes in figure.axes:
            for line in axes.get_lines():
                lines[axes.get_title(), line.get_label()] = np.array(line.get_xydata())
        original(figure, path, **options)

    from matplotlib.figure import Figure

    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", remember)
    return lines


def series(drawn, title):
    return next(points for (name, _), points in drawn.items() if name == title)


def test_every_series_is_drawn_at_its_iterations(tmp_path, drawn):
    save_curves(tmp_path / "curves.png", ROWS)
    np.testing.assert_allclose(series(drawn, "loss"), [(50 * epoch, 1 / epoch) for epoch in range(1, 8)])
    np.testing.assert_allclose(series(drawn, "learning rate")[:, 1], [1e-3 / epoch for epoch in range(1, 8)])
    liver = drawn["validation Dice", "liver"]
    np.testing.assert_allclose(liver, [(50 * epoch, 0.1 * epoch) for epoch in (1, 3, 5, 7)])
    assert len(drawn["validation Dice", "mean"]) == 4


def test_speed_is_the_iterations_since_the_row_before(tmp_path, drawn):
    save_curves(tmp_path / "curves.png", [row(1), row(2, seconds=100.0), row(3)])
    np.testing.assert_allclose(series(drawn, "iterations per second"), [(50, 2.0), (100, 0.5), (150, 2.0)])


@pytest.mark.parametrize("rows", [[], [row(1)], [{"iteration": 1}, {"iteration": 2, "loss": None}], ROWS])
def test_any_history_gives_a_whole_picture(tmp_path, rows):
    path = tmp_path / "deep" / "curves.png"
    save_curves(path, rows)
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 300
    assert picture.min() < 0.5
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]


def test_many_organs_have_no_legend_that_hides_them(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(curves, "add_legend", lambda axes, *_, **options: asked.append(axes.get_title()))
    many = {f"organ {index}": 0.5 for index in range(curves._MOST_NAMES + 1)}
    save_curves(tmp_path / "curves.png", [row(1, validation_dice=many, validation_mean=0.5)])
    assert not asked
    save_curves(tmp_path / "curves.png", [row(1, validation_dice={"liver": 0.5}, validation_mean=0.5)])
    assert asked == ["validation Dice"]
