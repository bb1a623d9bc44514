"""A GPU trains in the channels-last layout only where that gives the same numbers."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from flaresemi.compute.precision import Precision
from flaresemi.networks import layout
from flaresemi.networks.blocks import InstanceNorm
from flaresemi.networks.layout import agrees, trains_channels_last
from flaresemi.networks.unet import build_network
from flaresemi.plans import NetworkPlan

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_both_layouts_agree_here_and_nothing_random_is_used_up(name: str) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert agrees(CPU, Precision(CPU, name))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("wrong", ["result", "gradient"])
def test_a_wrong_kernel_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = InstanceNorm._normalize_one

    def spoilt(norm: InstanceNorm, sample: torch.Tensor) -> torch.Tensor:
        right = normalize(norm, sample)
        return 1.2 * right if wrong == "result" else 1.2 * right - 0.2 * right.detach()

    monkeypatch.setattr(InstanceNorm, "_normalize_one", spoilt)
    assert not agrees(CPU, Precision(CPU, "fp32"))


def test_a_gpu_trains_channels_last_in_half_precision_where_that_is_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    half, full = Precision(CPU, "bf16"), Precision(CPU, "fp32")
    answers: list[bool] = []
    monkeypatch.setattr(layout, "agrees", lambda *_: answers.pop())
    assert not trains_channels_last(CPU, half)
    assert not trains_channels_last(GPU, full)
    answers += [True]
    assert trains_channels_last(GPU, half)
    answers += [False]
    with caplog.at_level(logging.WARNING):
        assert not trains_channels_last(GPU, half)
    assert "other numbers in the channels-last layout" in caplog.text


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
