"""A CUDA device; and, where there is none, that what is asked of torch is what torch offers."""

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from flaresemi.compute.card import Card
from flaresemi.compute.device import upload

GPU = torch.device("cuda")


def doubled(windows: torch.Tensor) -> torch.Tensor:
    return (windows * 2).relu()


@pytest.mark.gpu
def test_a_recording_gives_the_same_for_other_inputs_in_tensors_of_their_own() -> None:
    card, example = Card(GPU), torch.randn(2, 3, 8, 8, 8, device=GPU)
    replay = card.recorded(doubled, example)
    outputs = []
    for seed in range(4):
        given = torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(seed)).to(GPU)
        outputs.append((replay(given), doubled(given)))
    for found, expected in outputs:
        assert torch.equal(found, expected)


@pytest.mark.gpu
def test_a_run_that_looks_at_a_value_cannot_be_recorded_and_harms_nothing() -> None:
    card, example = Card(GPU), torch.ones(4, device=GPU)
    with pytest.raises(RuntimeError):
        card.recorded(lambda given: given * given.sum().item(), example)
    assert torch.equal(doubled(example), torch.full((4,), 2.0, device=GPU))
    assert torch.equal(card.recorded(doubled, example)(example), doubled(example))


@pytest.mark.gpu
def test_after_a_recording_that_failed_half_way_the_stream_is_the_one_from_before() -> None:
    before, passes = torch.cuda.current_stream(), []

    def fails_at_last(given: torch.Tensor) -> torch.Tensor:
        passes.append(1)
        output = given * 2
        if len(passes) == 3:
            raise RuntimeError("half way")
        return output

    with pytest.raises(RuntimeError):
        Card(GPU).recorded(fails_at_last, torch.ones(4, device=GPU))
    assert torch.cuda.current_stream() == before
    Card(GPU).release()
    assert torch.equal(
        Card(GPU).recorded(doubled, torch.ones(4, device=GPU))(torch.ones(4, device=GPU)).cpu(), torch.full((4,), 2.0)
    )


@pytest.mark.gpu
def test_time_and_memory_of_a_gpu() -> None:
    card, large = Card(GPU), torch.randn(4096, 4096, device=GPU)
    large @ large
    short, long = (card.seconds(lambda count=count: [large @ large for _ in range(count)]) for count in (1, 40))
    assert 0 < short < long
    free = card.free_gib()
    assert 0 < free < 2000
    held = torch.empty(1 << 28, dtype=torch.uint8, device=GPU)
    assert card.free_gib() < free - 0.2
    del held
    assert card.free_gib() > free - 0.1  # held by torch, and free all the same
    card.release()


@pytest.mark.gpu
def test_what_a_recording_holds_is_not_free() -> None:
    card, example = Card(GPU), torch.ones(1 << 26, device=GPU)
    free = card.free_gib()
    replay = card.recorded(lambda given: ((given * 2).relu() + 1)[:1].clone(), example)
    assert card.free_gib() < free - 0.45  # the input, and what comes between it and the output
    del replay
    card.release()
    assert card.free_gib() > free - 0.1


@pytest.mark.gpu
def test_an_upload_in_parts_is_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flaresemi.compute.device._PART_BYTES", 1 << 16)
    array = torch.randn(2, 60, 64, 65).numpy()
    for each in (array, array[:, ::-1, ::-1]):
        torch.testing.assert_close(upload(each, GPU).cpu(), torch.tensor(each.copy()), rtol=0, atol=0)


class MadeGraph:
    """What torch records, as functions: the recorded run is repeated on its own input, into its own output."""

    def replay(self) -> None:
        self.output.copy_(doubled(self.held))


def test_what_is_asked_of_torch_is_what_it_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, calls, reserved = [MadeGraph()], [], itertools.count(4 << 30, 3 << 30)
    signature = inspect.signature(torch.cuda.graph.__init__)
    stream = SimpleNamespace(wait_stream=lambda _: None)

    @contextlib.contextmanager
    def recording(*arguments: object, **named: object) -> Iterator[None]:
        signature.bind(None, *arguments, **named)
        calls.append("recording")
        yield
        calls.append("recorded")

    def run(windows: torch.Tensor) -> torch.Tensor:
        calls.append("run")
        graphs[0].held, graphs[0].output = windows, doubled(windows)
        return graphs[0].output

    for name, made in {
        "device": lambda _: contextlib.nullcontext(),
        "stream": lambda _: contextlib.nullcontext(),
        "Stream": lambda _: stream,
        "current_stream": lambda: stream,
        "CUDAGraph": lambda: graphs[0],
        "graph": recording,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: calls.append(f"mode {mode}"),
        "memory_reserved": lambda _: next(reserved),
        "memory_allocated": lambda _: 0,
        "mem_get_info": lambda _: (1 << 30, 0),
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, made)
    example = torch.randn(2, 3)
    replay = Card(GPU).recorded(run, example)
    assert calls == ["run", "mode error", "run", "mode 0", "recording", "run", "recorded"]
    outputs = [replay(torch.full((2, 3), float(number))) for number in range(3)]
    assert [float(output[0, 0]) for output in outputs] == [0.0, 2.0, 4.0]
    assert calls.count("run") == 3
    outputs[0].zero_()
    # 1 GiB is free; torch holds 4, 7, 10, ... of which 3 came while the recording was made and are its own.
    assert Card(GPU).free_gib() == pytest.approx(1 + 10 - 3)
    assert Card(torch.device("cuda:1")).free_gib() == pytest.approx(1 + 13)
    del replay
    graphs.clear()
    assert Card(GPU).free_gib() == pytest.approx(1 + 16)
