import math

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from flaresemi.pseudolabels.scoring import _entropy


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
def test_entropy_is_that_of_the_probabilities(scale: float) -> None:
    logits = scale * torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Categorical(logits=logits.double().movedim(0, -1)).entropy() / math.log(7)
    np.testing.assert_allclose(_entropy(logits), expected, atol=1e-6)


def test_entropy_makes_no_second_array_of_all_classes() -> None:
    logits = torch.randn(20, 8, 16, 16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _entropy(logits)
    events = profiled.events()
    assert events is not None
    assert 0 < max(event.self_cpu_memory_usage for event in events) <= logits[0].nbytes
