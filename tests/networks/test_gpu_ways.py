"""The choosing, with a card that is none: its clock is made up, its memory a number, its recordings functions."""

import dataclasses
import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flaresemi.compute.card import Card
from flaresemi.compute.precision import Precision
from flaresemi.networks import engine as engines
from flaresemi.networks.engine import Engine
from flaresemi.networks.gpu_ways import GpuWays, Graphed, Way, clearly_fastest, windows_per_pass
from flaresemi.networks.kept import Kept
from flaresemi.plans import Stage, StagePlan
from tests.inference.conftest import make_checkpoint, make_plan

CPU = torch.device("cpu")

CONTIGUOUS, LAST = Way(windows=4), Way(windows=4, channels_last=True)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Threads wait for each other on windows this small."""


class Network(nn.Module):
    """Twice its input; a wrong kernel, a lack of memory, and a look at a value can be had in one format."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, bool]] = []
        self.wrong_in_last = self.no_kernel_in_last = False
        self.most = 9

    def forward(self, windows: Tensor) -> Tensor:
        last = not windows.is_contiguous() or windows.stride(1) == 1
        self.passes.append((len(windows), last))
        if len(windows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if last and self.no_kernel_in_last:
            raise RuntimeError("no engine for it\nand more")
        return windows * (3 if last and self.wrong_in_last else 2)


class FakeCard(Card):
    """Seconds of a pass by its way; None: any recording fails."""

    def __init__(self, network: Network, seconds: dict[tuple[int, bool], float], graph: float | None = None) -> None:
        super().__init__(CPU)
        self.network, self.table, self.graph = network, seconds, graph
        self.memory, self.released, self.replayed, self.wrong = 1000.0, 0, 0, False

    def free_gib(self) -> float:
        return self.memory

    def release(self) -> None:
        self.released += 1

    def seconds(self, run: Callable[[], object]) -> float:
        self.network.passes.clear()
        before = self.replayed
        run()
        if self.replayed > before:
            assert self.graph is not None
            return self.graph
        return self.table.get(self.network.passes[-1], 9.0)

    def recorded(self, run: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
        if self.graph is None:
            raise RuntimeError("operation not permitted when stream is capturing")
        shape = example.shape

        def replay(windows: Tensor) -> Tensor:
            assert windows.shape == shape
            self.replayed += 1
            return run(windows) * (1.5 if self.wrong else 1.0)

        return replay


def ways_of(card: FakeCard, *, measured: bool = True, kept: Kept | None = None) -> GpuWays:
    return GpuWays(card, Precision(CPU, "fp32"), measured=measured, machine=lambda: ["a card"], kept=kept)


def chosen(
    seconds: dict[tuple[int, bool], float], graph: float | None = None, **changes: object
) -> tuple[Way, FakeCard, StagePlan]:
    network, plan = Network(), make_plan(Stage.FINE)
    card = FakeCard(network, seconds, graph)
    for name, value in changes.items():
        setattr(card if hasattr(card, name) else network, name, value)
    ways = ways_of(card)
    ways.load(network, plan)
    (way,) = ways.found.values()
    return way, card, plan


def test_a_later_way_must_be_clearly_faster() -> None:
    def best(*seconds: float | None) -> int | None:
        ways = [Way(windows=number) for number in range(1, len(seconds) + 1)]
        found = clearly_fastest(ways, lambda way: seconds[way.windows - 1])
        return None if found is None else found.windows

    assert best(1.0) == 1
    assert best(1.0, 0.9, 0.84) == 1
    assert best(1.0, 0.8, 0.7, 0.5) == 4
    assert best(1.0, 0.8, 0.7) == 2  # 0.7 is not clearly faster than 0.8
    assert best(None, 5.0, 4.9) == 2
    assert best(None, None) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({(4, False): 4.6, (4, True): 7.4}, CONTIGUOUS),  # as `small` was on an H200
        ({(4, False): 4.6, (4, True): 3.0}, LAST),
        ({(4, False): 4.6, (4, True): 4.0}, CONTIGUOUS),  # a busy moment
        ({(4, False): 41.3, (4, True): 59.5, (1, False): 26.9, (1, True): 3.5}, Way(windows=1, channels_last=True)),
        ({(4, False): 4.0, (2, False): 1.0, (2, True): 0.9, (1, True): 0.95}, Way(windows=2)),
    ],
)
def test_the_fastest_way_is_taken(seconds: dict[tuple[int, bool], float], expected: Way) -> None:
    assert chosen(seconds)[0] == expected


def test_what_memory_does_not_allow_is_not_tried_or_ruled_out() -> None:
    fast_four = {(4, False): 0.1, (4, True): 0.1, (2, False): 2.0, (1, False): 2.0}
    assert chosen(fast_four)[0] == CONTIGUOUS
    assert chosen(fast_four, most=2)[0] == Way(windows=2)  # it runs out of memory in a pass of four
    assert chosen(fast_four, most=0)[0] == Way(windows=1)  # not even one fits: prediction will say so
    way, card, _ = chosen(fast_four, memory=0.0)
    assert way == Way(windows=1)
    assert {windows for windows, _ in card.network.passes} <= {1}


def test_a_way_with_other_numbers_is_never_taken(caplog: pytest.LogCaptureFixture) -> None:
    fast_last = {(4, False): 4.0, (4, True): 0.1, (2, True): 0.1, (1, True): 0.1, (2, False): 2.0, (1, False): 1.0}
    assert chosen(fast_last)[0] == LAST
    assert not caplog.records
    assert chosen(fast_last, wrong_in_last=True)[0] == CONTIGUOUS
    assert "its numbers are not those" in caplog.text
    assert chosen(fast_last, no_kernel_in_last=True)[0] == CONTIGUOUS


def test_where_noise_gives_no_numbers_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Network, "forward", lambda _, windows: windows * torch.inf)
    assert chosen({(4, False): 1.0})[0] == Way(windows=1)
    assert not caplog.records


def test_a_graph_must_be_clearly_faster_and_give_the_same() -> None:
    seconds = {(4, False): 4.0}
    assert chosen(seconds, graph=2.0)[0] == dataclasses.replace(CONTIGUOUS, graph=True)
    assert chosen(seconds, graph=3.9)[0] == CONTIGUOUS
    assert chosen(seconds, graph=0.1, wrong=True)[0] == CONTIGUOUS
    assert chosen(seconds, graph=None)[0] == CONTIGUOUS


def test_the_logits_are_those_of_the_network_and_the_callers_own() -> None:
    network, plan = Network(), make_plan(Stage.FINE)
    ways = ways_of(FakeCard(network, {(4, True): 0.1}, graph=0.01))
    forward = ways.load(network, plan)
    assert list(ways.found.values()) == [dataclasses.replace(LAST, graph=True)]
    for number in range(20):
        windows = torch.full((4, 1, 16, 16, 16), float(number))
        logits = forward(windows)
        assert torch.equal(logits, 2 * windows) and logits.is_contiguous()
        logits.zero_()
        assert windows.max() == number


def test_another_network_of_the_plan_is_not_measured_but_another_plan_is() -> None:
    network, plan = Network(), make_plan(Stage.FINE)
    card = FakeCard(network, {(4, False): 4.0})
    ways = ways_of(card)
    ways.load(network, plan)
    network.passes.clear()
    ways.load(network, plan)
    assert not network.passes and len(ways.found) == 1
    ways.load(network, make_plan(Stage.FINE, patch=(16, 16, 32)))
    assert network.passes and len(ways.found) == 2


def test_what_was_found_is_kept_for_the_next_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, plan, kept = Network(), make_plan(Stage.FINE), Kept(tmp_path / "kept")
    card = FakeCard(network, {(4, True): 1.0}, graph=0.1)
    ways_of(card, kept=kept).load(network, plan)
    with caplog.at_level(logging.INFO):
        again = ways_of(FakeCard(network, {}), kept=kept)  # its clock would say otherwise
        again.load(network, plan)
    assert list(again.found.values()) == [dataclasses.replace(LAST, graph=True)]
    assert "by an earlier check" in caplog.text
    less = FakeCard(network, {})
    less.memory = 0.0  # where four windows do not fit now, what was found then does not hold
    other = ways_of(less, kept=kept)
    other.load(network, plan)
    assert list(other.found.values()) == [Way(windows=1)]


@pytest.mark.parametrize("changes", [{"most": 0}, {"forward": lambda windows: windows * torch.inf}])
def test_where_nothing_could_be_tried_nothing_is_kept(changes: dict[str, object], tmp_path: Path) -> None:
    """A card that was busy for a moment, or logits of noise that are not finite."""
    network, plan, kept = Network(), make_plan(Stage.FINE), Kept(tmp_path / "kept")
    for name, value in changes.items():
        setattr(network, name, value)
    ways_of(FakeCard(network, {}), kept=kept).load(network, plan)
    other = Network()
    again = ways_of(FakeCard(other, {(4, True): 1.0}), kept=kept)
    again.load(other, plan)
    assert list(again.found.values()) == [LAST]


def test_a_lack_of_memory_frees_the_recordings_of_all_networks() -> None:
    network, plan = Network(), make_plan(Stage.FINE)
    engines_of_two_plans = [ways_of(FakeCard(network, {(4, False): 1.0}, graph=0.1)) for _ in range(2)]
    forwards = [ways.load(network, plan) for ways in engines_of_two_plans]
    for forward in forwards:
        assert isinstance(forward, Graphed)
        for _ in range(20):
            forward(torch.rand(4, 1, 16, 16, 16))
        assert forward._recorded is not None
    engines_of_two_plans[0].retreat()
    assert [forward._recorded for forward in forwards] == [None, None]  # type: ignore[attr-defined]


def test_unmeasured_everything_is_as_it_was() -> None:
    network, plan = Network(), make_plan(Stage.FINE)
    ways = ways_of(FakeCard(network, {(4, True): 0.001}), measured=False)
    forward = ways.load(network, plan)
    assert not network.passes and not ways.found and not isinstance(forward, Graphed)
    assert ways.windows_per_pass(plan, (16, 64, 80)) == 4
    assert ways.windows_per_pass(plan, (160, 64, 80)) == 1


def test_larger_windows_come_in_smaller_numbers() -> None:
    network, plan = Network(), make_plan(Stage.FINE)
    ways = ways_of(FakeCard(network, {(4, False): 1.0}))
    ways.load(network, plan)
    assert [ways.windows_per_pass(plan, (16, 16, size)) for size in (16, 20, 32, 40, 999)] == [4, 3, 2, 1, 1]


def test_by_rule_a_gpu_gets_as_many_windows_as_keep_it_busy() -> None:
    gpu = torch.device("cuda")
    assert [windows_per_pass(gpu, (size, 64, 80)) for size in (16, 48, 64, 160, 256, 1024)] == [4, 4, 3, 1, 1, 1]
    assert windows_per_pass(CPU, (16, 64, 80)) == 1


@pytest.mark.parametrize(
    ("arguments", "deterministic", "measured"),
    [(("auto", "auto"), False, True), (("auto", "auto"), True, False), (("auto", "torch"), False, False)],
)
def test_named_or_deterministic_an_engine_measures_nothing(
    arguments: tuple, deterministic: bool, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network()
    card = FakeCard(network, {(4, True): 1.0})
    monkeypatch.setattr(engines, "Card", lambda _: card)
    monkeypatch.setattr(engines, "device_name", lambda _: "a card")
    monkeypatch.setattr(engines, "trained_network", lambda _: network)
    monkeypatch.setattr(network, "to", lambda _: network)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    engine, plan = Engine(torch.device("cuda"), *arguments), make_plan(Stage.FINE)
    engine._choices[0][1].autocast = Precision(CPU, "fp32").autocast
    engine.load(make_checkpoint(plan))
    assert bool(network.passes) is measured
    assert engine.windows_per_pass(plan, (16, 16, 16)) == 4
    assert engine.ways is not None and list(engine.ways.found.values()) == ([LAST] if measured else [])
    engine.retreat()
    assert card.released > 0


class Recorder:
    """Records passes as a list of shapes; what it gives is added to."""

    def __init__(self, error: Exception | None = None, added: float = 0.0) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.error, self.added, self.replays = error, added, 0
        self.failing = False
        self.pool: weakref.ref[Tensor] | None = None

    def __call__(self, forward: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
        if self.error is not None:
            raise self.error
        self.shapes.append(tuple(example.shape))

        def replay(windows: Tensor) -> Tensor:
            assert tuple(windows.shape) == self.shapes[-1]
            if self.failing:
                pool = torch.zeros(1)
                self.pool = weakref.ref(pool)
                raise RuntimeError("misaligned address")
            self.replays += 1
            return forward(windows) + self.added

        return replay


def double(windows: Tensor) -> Tensor:
    return 2 * windows


def test_a_pass_is_recorded_when_its_shape_came_often() -> None:
    recorder = Recorder()
    graphed = Graphed(double, recorder, often=2)
    one, two = torch.rand(1, 1, 4, 4, 4), torch.rand(2, 1, 4, 4, 4)
    for windows in (one, two, one, two):
        assert torch.equal(graphed(windows), 2 * windows)
    assert not recorder.shapes
    graphed(one)
    assert recorder.shapes == [(1, 1, 4, 4, 4)]
    replays = recorder.replays
    for _ in range(3):
        assert torch.equal(graphed(one), 2 * one)
    assert recorder.replays == replays + 3
    for _ in range(3):
        graphed(two)
        graphed(one)
    assert len(recorder.shapes) == 1  # what comes between now and then is not recorded instead
    for _ in range(3):
        graphed(two)  # it has to come often once more
    assert recorder.shapes == [(1, 1, 4, 4, 4), (2, 1, 4, 4, 4)]
    graphed(one)
    assert len(recorder.shapes) == 2


@pytest.mark.parametrize(
    "recorder", [Recorder(RuntimeError("capturing")), Recorder(torch.OutOfMemoryError("full")), Recorder(added=0.5)]
)
def test_a_recording_that_fails_or_gives_other_numbers_is_not_used(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    graphed, windows = Graphed(double, recorder, often=0), torch.rand(1, 1, 4, 4, 4)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            assert torch.equal(graphed(windows), 2 * windows)
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.DEBUG
    assert len(recorder.shapes) <= 1


def test_a_replay_that_fails_is_computed_plainly_from_then_on() -> None:
    recorder, windows = Recorder(), torch.rand(1, 1, 4, 4, 4)

    def with_memory(windows: Tensor) -> Tensor:
        assert not recorder.failing or recorder.pool is None or recorder.pool() is None  # it is not held any more
        return double(windows)

    graphed = Graphed(with_memory, recorder, often=0)
    graphed(windows)
    recorder.failing = True
    for _ in range(2):
        assert torch.equal(graphed(windows), 2 * windows)
    assert recorder.pool is not None and recorder.pool() is None
    recorder.failing, replays = False, recorder.replays
    graphed(windows)
    assert recorder.replays == replays
    graphed.stop("said twice")
