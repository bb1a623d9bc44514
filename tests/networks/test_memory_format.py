"""A GPU trains in the channels-last memory format only where that gives the same numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from flaresemi.compute.precision import Precision
from flaresemi.networks import memory_format
from flaresemi.networks.blocks import InstanceNorm
from flaresemi.networks.building import build_network
from flaresemi.networks.memory_format import agrees, trains_channels_last
from flaresemi.plans import NetworkPlan

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_both_layouts_agree_here_and_nothing_random_is_used_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU was seeded"))
    torch.default_generator.manual_seed(1)
    expected = torch.rand(1)
    torch.default_generator.manual_seed(1)
    assert agrees(CPU, Precision(CPU, name))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), expected)


def test_rounding_is_no_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = memory_format._numbers

    def other_rounding(*given: object, last: bool) -> list[torch.Tensor]:
        precision = Precision(CPU, "bf16" if last else "fp32")
        return numbers(*given[:3], precision, last=last)  # type: ignore[arg-type]

    monkeypatch.setattr(memory_format, "_numbers", other_rounding)
    assert agrees(CPU, Precision(CPU, "bf16"))


@pytest.mark.parametrize("wrong", ["result", "gradient", "nan"])
def test_a_wrong_kernel_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = InstanceNorm._normalize_one

    def spoilt(norm: InstanceNorm, sample: torch.Tensor) -> torch.Tensor:
        right = normalize(norm, sample)
        if wrong == "nan":
            return right * math.nan
        return 1.5 * right if wrong == "result" else 1.5 * right - 0.5 * right.detach()

    monkeypatch.setattr(InstanceNorm, "_normalize_one", spoilt)
    assert not agrees(CPU, Precision(CPU, "fp32"))


def test_a_gpu_trains_channels_last_in_bf16_where_that_is_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    half, full = Precision(CPU, "bf16"), Precision(CPU, "fp32")
    monkeypatch.setattr(memory_format, "agrees", lambda *_: True)
    assert not trains_channels_last(CPU, half)
    assert not trains_channels_last(GPU, full)
    assert trains_channels_last(GPU, half)
    assert caplog.text == ""
    monkeypatch.setattr(memory_format, "agrees", lambda *_: False)
    assert not trains_channels_last(GPU, half)
    assert "its numbers are not those of the contiguous one" in caplog.text

    def missing(*_: object) -> bool:
        raise RuntimeError("no engine\nfor this")

    monkeypatch.setattr(memory_format, "agrees", missing)
    assert not trains_channels_last(GPU, half)
    assert caplog.text.endswith("on this GPU: no engine\n")


def test_elsewhere_than_on_a_cpu_the_layout_is_the_trainings_choice(make_plan: Callable[..., NetworkPlan]) -> None:
    network, image = build_network(make_plan()).to("meta"), torch.empty(2, 1, 16, 32, 32, device="meta")
    seen: list[bool] = []

    def look(_: nn.Module, given: tuple[torch.Tensor]) -> None:
        seen.append(given[0].stride(1) == 1)

    network.encoder[0].register_forward_pre_hook(look)
    network(image)
    network.channels_last = True
    network(image)
    with torch.no_grad():
        network(image)
    assert seen == [False, True, False]
