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
    return Optimization(network, optimizer, Precision(torch.device("cpu"), precision), gradient_clip=1.0, ema_decay=0.9)


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
