"""Compiled or not, a network is the same network. The real compiler takes a minute: here others stand in its place."""

import copy
import logging

import pytest
import torch
from torch import nn

from flaresemi.compute.precision import Precision
from flaresemi.networks.compiling import compiled

FP32 = Precision(torch.device("cpu"), "fp32")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.LeakyReLU(inplace=True), nn.Conv3d(2, 1, 1))


def test_a_compiled_network_computes_the_same_and_keeps_its_names() -> None:
    plain, example = network(), torch.randn(1, 1, 6, 6, 6)
    weights = copy.deepcopy(plain.state_dict())
    fast = compiled(plain, example, FP32, backend="eager")
    assert fast is not plain
    torch.testing.assert_close(fast(example), plain(example), rtol=0, atol=0)
    # The trial leaves no gradient and no change.
    assert all(parameter.grad is None for parameter in plain.parameters())
    assert list(plain.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("fails_backward", [False, True])
def test_what_cannot_be_compiled_runs_as_it_is(fails_backward: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(context: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler for backward")

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        if not fails_backward:
            raise RuntimeError("\nno working C++ compiler\nmore")
        return lambda *values: tuple(Broken.apply(value) for value in graph(*values))

    plain = network()
    with caplog.at_level(logging.WARNING):
        assert compiled(plain, torch.randn(1, 1, 6, 6, 6), FP32, backend=backend) is plain  # type: ignore[arg-type]
    assert "cannot be compiled on this machine" in caplog.text
    assert "compiler" in caplog.text
    assert all(parameter.grad is None for parameter in plain.parameters())
