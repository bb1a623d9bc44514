"""Small network plans."""

from collections.abc import Callable

import pytest

from flaresemi.plans import NetworkPlan


def small_plan(block: str = "plain", **changes: object) -> NetworkPlan:
    """Three levels, the first of them blind along z."""
    fields: dict = {
        "block": block,
        "input_channels": 1,
        "output_channels": 3,
        "features": (4, 8, 12),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "encoder_convs": (1, 2, 2),
        "decoder_convs": (2, 1),
    }
    return NetworkPlan(**fields | changes)


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., NetworkPlan]:
    return small_plan


@pytest.fixture(params=["plain", "residual"])
def plan(request: pytest.FixtureRequest) -> NetworkPlan:
    """Both kinds of encoder, one after the other."""
    return small_plan(request.param)
