import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi.reporting.charts import Axis, Chart, Series, Strip, histogram, line_chart, scatter, strips
from flaresemi.reporting.page import environment

UNIT = Axis(title="score")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_ticks_are_few_round_and_on_the_axis(low: float, length: float, is_whole: bool) -> None:
    axis = Axis(title="", low=low, high=low + length, is_whole=is_whole)
    ticks = axis.ticks()
    assert len(ticks) <= 8
    assert all(axis.low - 1e-6 * length <= tick <= axis.high + 1e-6 * length for tick in ticks)
    if is_whole:
        assert all(tick == round(tick) for tick in ticks)
    else:
        assert len(ticks) >= 2


def test_a_flat_line_has_a_place() -> None:
    axis = Axis(title="", low=2.0, high=2.0)
    assert axis.ticks() == [2.0]
    assert axis.share(2.0) == 0.5


def bars(chart: Chart, kind: str) -> list[tuple[float, float]]:
    """Left edge and height of every bar of a kind."""
    return [(left, height) for left, _, _, height, each in chart.boxes if each == kind]


def cuts(chart: Chart) -> int:
    return sum(kind == "cut" for *_, kind in chart.lines)


def test_a_histogram_counts_every_value_once() -> None:
    used, rejected = [0.91, 0.92, 0.99, 1.0], [0.0, 0.5, 0.92]
    chart = histogram(used, rejected, UNIT, alt="scores", cut=0.9, size=(480, 300))
    unit = min(height for _, height in bars(chart, "rejected"))
    assert sum(round(height / unit) for _, height in bars(chart, "used")) == len(used)
    assert sum(round(height / unit) for _, height in bars(chart, "rejected")) == len(rejected)
    assert cuts(chart) == 1
    assert cuts(histogram(used, rejected, UNIT, alt="", cut=None, size=(480, 300))) == 0


def test_rejected_values_stand_on_used_ones() -> None:
    chart = histogram([0.5, 0.5], [0.5], UNIT, alt="", cut=None, size=(480, 300))
    (_, used_top, _, used_height, _), (_, top, _, height, _) = chart.boxes
    assert used_height == pytest.approx(2 * height, abs=0.2)
    assert top + height == pytest.approx(used_top, abs=0.2)
    assert used_top + used_height == pytest.approx(chart.at(0, 0)[1], abs=0.2)


def test_an_empty_histogram_is_a_chart() -> None:
    assert bars(histogram([], [], UNIT, alt="", cut=None, size=(480, 300)), "used") == []


def test_strips_have_a_row_each_with_its_own_height() -> None:
    rows = [
        Strip(name="liver<", used=[0.9] * 100, rejected=[0.1], cut=0.8),
        Strip(name="spleen", used=[0.9], rejected=[]),
    ]
    chart = strips(rows, UNIT, alt="agreement")
    assert cuts(chart) == 1
    tall, lone = (height for _, height in bars(chart, "used"))
    assert tall == pytest.approx(lone, rel=0.05)
    assert len(bars(chart, "rejected")) == 1
    assert "liver&lt;</text>" in drawn(chart)


def drawn(chart: Chart) -> str:
    call = "{% from 'reporting/charts.html' import chart %}{{ chart(made) }}"
    return environment().from_string(call).render(made=chart)


def test_lines_rise_where_values_do_and_are_named() -> None:
    series = [
        Series(name="start & co", points=[(0, 0.1), (10, 0.9)]),
        Series(name="round 1", points=[(0, 0.5), (10, 0.2)], look=7),
    ]
    chart = line_chart(series, Axis(title="iteration", high=10), UNIT, alt="loss < 1", size=(400, 200))
    (first, one), (second, other) = chart.curves
    assert first[0][1] > first[1][1]  # SVG counts downward
    assert second[0][1] < second[1][1]
    assert (one, other) == ("look0", "look1")
    made = drawn(chart)
    assert made.count("<polyline") == 2
    assert made.count("<circle") == 4
    assert "<title>loss &lt; 1</title>" in made
    assert 'role="img" aria-label="loss &lt; 1"' in made
    legend = environment().from_string("{% from 'reporting/charts.html' import legend %}{{ legend(made) }}")
    assert "start &amp; co</li>" in legend.render(made=series)


def test_scatter_has_every_point_and_the_line_of_equality() -> None:
    chart = scatter([(0.1, 0.2), (0.9, 0.7)], UNIT, UNIT, alt="", size=(300, 300))
    assert [kind for _, kind in chart.dots] == ["point"] * 2
    assert chart.lines == [(chart.at(0, 0), chart.at(1, 1), "diagonal")]
