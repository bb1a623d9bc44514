import types

import pytest

from flaresemi.cli import signals
from flaresemi.cli.signals import StopSignals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The one clock that there is: a list with the time; the wall clock, which others set, is not there at all."""
    now = [5000.0]
    monkeypatch.setattr(signals, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def stopped_at(clock: list[float], stop: StopSignals, gap: float) -> float:
    start = clock[0]
    while not stop.requested():
        clock[0] += gap
    return clock[0] - start


def test_without_a_limit_nothing_stops(clock: list[float]) -> None:
    stop = StopSignals()
    clock[0] += 1e9
    assert not stop.requested()


@pytest.mark.parametrize(("gap", "expected"), [(1.0, 3600 - 60 - 1), (100.0, 3500.0)])
def test_a_limit_leaves_the_longest_gap_and_a_reserve(clock: list[float], gap: float, expected: float) -> None:
    assert stopped_at(clock, StopSignals(3600), gap) == expected


def test_a_long_validation_is_expected_again(clock: list[float]) -> None:
    stop = StopSignals(3600)
    assert not stop.requested()
    clock[0] += 1000
    assert not stop.requested()
    assert 1000 + stopped_at(clock, stop, 1.0) == 3600 - 60 - 1000


def test_a_short_limit_has_a_short_reserve_and_stays_reached(clock: list[float]) -> None:
    stop = StopSignals(10)
    assert stopped_at(clock, stop, 0.5) == 8.5
    clock[0] -= 5  # which no monotonic clock does
    assert stop.requested()


def test_a_process_that_is_started_again_has_what_is_left(clock: list[float]) -> None:
    assert stopped_at(clock, StopSignals(3600, began=clock[0] - 3000), 1.0) == 600 - 60 - 1
    assert StopSignals(3600, began=clock[0] - 4000).requested()
