import itertools

import pytest
import torch

from flaresemi.compute.metering import no_clock
from flaresemi.compute.precision import Precision, PrecisionName
from flaresemi.training.optimization import Optimization

NAMES: tuple[PrecisionName, ...] = ("fp32", "bf16", "fp16")


def made(precision: PrecisionName) -> Optimization:
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    return optimization(network, optimizer, precision)


def optimization(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, precision: PrecisionName = "fp32"
) -> Optimization:
    circumstances = Precision(torch.device("cpu"), precision)
    return Optimization(network, optimizer, circumstances, learning_rate=1e-2, gradient_clip=1.0, ema_decay=0.9)


@pytest.mark.parametrize(("before", "after"), [*itertools.product(NAMES, NAMES)])
def test_a_state_is_taken_up_in_any_precision(before: PrecisionName, after: PrecisionName) -> None:
    one, other = made(before), made(after)
    one.step(one.network(torch.ones(1, 2)).sum(), 1e-2, 1, no_clock)
    other.load(one.state(), one.weights)
    for name, value in one.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], value)
    if before == after:
        assert other.precision.scaler.state_dict() == one.precision.scaler.state_dict()
    other.step(other.network(torch.ones(1, 2)).sum(), 1e-2, 2, no_clock)


def groups(*rates: float) -> Optimization:
    """Of a network whose weight and bias are groups with these learning rates."""
    network = torch.nn.Linear(2, 1)
    parts = zip((network.weight, network.bias), rates, strict=True)
    return optimization(network, torch.optim.SGD([{"params": [part], "lr": rate} for part, rate in parts], lr=1.0))


def rates(made: Optimization, learning_rate: float) -> list[float]:
    made.step(made.network(torch.ones(1, 2)).sum(), learning_rate, 1, no_clock)
    return [group["lr"] for group in made.optimizer.param_groups]


def test_groups_of_an_optimizer_keep_their_share_of_the_learning_rate() -> None:
    one = groups(1e-2, 1e-3)
    assert rates(one, 1e-2) == pytest.approx([1e-2, 1e-3])
    assert rates(one, 4e-3) == pytest.approx([4e-3, 4e-4])
    other = groups(1e-2, 1e-3)  # as a resumed training makes it
    other.load(one.state(), one.weights)
    assert rates(other, 2e-3) == pytest.approx([2e-3, 2e-4])


def test_an_optimizer_with_one_learning_rate_has_that_of_the_schedule() -> None:
    assert rates(groups(0.5, 0.5), 0.3) == [0.3, 0.3]
