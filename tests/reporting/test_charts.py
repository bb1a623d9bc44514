import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi.reporting.charts import Axis, Series, Strip, histogram, line_chart, scatter, step, strips

UNIT = Axis(title="score", low=0, high=1)


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


def test_open_ends_come_from_the_values_and_a_flat_line_gets_room() -> None:
    assert Axis(title="", low=0).over([0.2, 0.7]).ends == (0, 0.7)
    assert Axis(title="").over([2.0, 2.0]).ends == (1.5, 2.5)
    assert Axis(title="").over([]).ends == (0, 1)
    with pytest.raises(ValueError, match="no ends"):
        Axis(title="").ticks()


def bars(chart: str, kind: str) -> list[tuple[float, float]]:
    """Left edge and height of every bar of a kind."""
    found = re.findall(rf'<rect x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)" class="{kind}"', chart)
    return [(float(x), float(height)) for x, height in found]


def test_a_histogram_counts_every_value_once() -> None:
    used, refused = [0.91, 0.92, 0.99, 1.0], [0.0, 0.5, 0.92]
    chart = histogram(used, refused, UNIT, alt="scores", cut=0.9, size=(480, 300))
    unit = min(height for _, height in bars(chart, "refused"))
    counted = [round(height / unit) for _, height in bars(chart, "used")]
    assert sum(counted) == len(used)
    assert sum(round(height / unit) for _, height in bars(chart, "refused")) == len(refused)
    assert 'class="cut"' in chart
    assert 'class="cut"' not in histogram(used, refused, UNIT, alt="", cut=None, size=(480, 300))


def test_an_empty_histogram_is_a_chart() -> None:
    assert bars(histogram([], [], UNIT, alt="", cut=None, size=(480, 300)), "used") == []


def test_strips_have_a_row_each_with_its_own_height() -> None:
    rows = [
        Strip(name="liver<", used=[0.9] * 100, refused=[0.1], cut=0.8),
        Strip(name="spleen", used=[0.9], refused=[]),
    ]
    chart = strips(rows, UNIT, alt="agreement")
    assert chart.count('class="cut"') == 1
    assert "liver&lt;" in chart
    tall, lone = (height for _, height in bars(chart, "used"))
    assert tall == pytest.approx(lone, rel=0.05)
    assert len(bars(chart, "refused")) == 1


def test_lines_rise_where_values_do_and_are_named() -> None:
    series = [
        Series(name="start & co", points=[(0, 0.1), (10, 0.9)]),
        Series(name="round 1", points=[(0, 0.5), (10, 0.2)], look=1),
    ]
    chart = line_chart(series, Axis(title="iteration"), UNIT, alt="loss", size=(400, 200))
    first, second = re.findall(r'<polyline points="([^"]*)"', chart)

    def ends(points: str) -> tuple[float, float]:
        heights = [float(place.split(",")[1]) for place in points.split()]
        return heights[0], heights[-1]

    assert ends(first)[0] > ends(first)[1]  # SVG counts downward
    assert ends(second)[0] < ends(second)[1]
    assert "start &amp; co" in chart
    assert 'class="legend"' in chart
    assert 'class="legend"' not in line_chart(series[:1], Axis(title=""), UNIT, alt="", size=(400, 200))
    assert "<title>loss</title>" in chart


def test_scatter_has_every_point_and_the_line_of_equality() -> None:
    chart = scatter([(0.1, 0.2), (0.9, 0.7)], UNIT, UNIT, alt="", size=(300, 300))
    assert chart.count('class="point"') == 2
    assert 'class="diagonal"' in chart


def test_a_step_leads_from_ring_to_disk() -> None:
    def places(chart: str) -> list[float]:
        return [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]

    before, after = places(step(0.5, 0.9))
    assert before < after
    assert "rise" in step(0.5, 0.9)
    before, after = places(step(0.5, 0.1))
    assert before > after
    assert "fall" in step(0.5, 0.1)
