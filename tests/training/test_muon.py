import pytest
import torch
from torch import nn

from flaresemi.compute.metering import no_clock
from flaresemi.compute.precision import Precision
from flaresemi.networks.building import build_network
from flaresemi.plans import NetworkPlan
from flaresemi.training.muon import Muon, orthogonalized
from flaresemi.training.optimization import Optimization

PLAN = NetworkPlan(
    block="plain", input_channels=1, output_channels=3, features=(4, 8), kernels=((3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2)), encoder_convs=(2, 2), decoder_convs=(2,),
)  # fmt: skip


def muon(*parameters: torch.Tensor, rate: float = 0.1, decay: float = 0.0) -> Muon:
    return Muon(parameters, rate, weight_decay=decay)


class Convolution(nn.Module):
    """One layer between hidden features, the same each time."""

    def __init__(self) -> None:
        super().__init__()
        values = torch.randn(6, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(0.1 * values)


@pytest.mark.parametrize("shape", [(6, 108), (108, 6), (16, 16)])
def test_singular_values_become_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonalized(matrix) @ right.T
    values = found.diagonal()
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.3
    assert float((found - torch.diag(values)).abs().max()) < 1e-4


def test_no_gradient_at_all_makes_no_step() -> None:
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_the_size_of_a_gradient_makes_no_difference() -> None:
    weights = []
    for size in (1e-4, 1e4):
        layer = Convolution()
        optimizer = muon(layer.weight)
        for step in range(3):
            layer.weight.grad = size * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_a_step_has_a_fifth_of_the_learning_rate_in_each_weight_and_shrinks_what_was() -> None:
    layer = Convolution()
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    gradient = layer.weight.grad
    muon(layer.weight, rate=0.1, decay=0.5).step()
    step = layer.weight.detach() - 0.95 * before
    assert float(step.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.2)
    assert float((step * gradient).sum()) < 0


def test_weights_without_a_gradient_to_follow_decay() -> None:
    layer = Convolution()
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(layer.weight)
    muon(layer.weight, rate=0.1, decay=0.5).step()
    torch.testing.assert_close(layer.weight.detach(), 0.95 * before)


def test_convolutions_between_hidden_features_alone_are_orthogonalized() -> None:
    network = build_network(PLAN)
    optimizer = Muon(network.parameters(), 0.1, weight_decay=0.01)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    matrices, others, undecayed = (
        sorted(names[id(parameter)] for parameter in group["params"]) for group in optimizer.param_groups
    )
    assert matrices == [
        "decoder.0.0.0.weight", "decoder.0.1.0.weight", "encoder.0.1.0.weight", "encoder.1.0.0.weight",
        "encoder.1.1.0.weight", "upsampling.0.weight",
    ]  # fmt: skip
    assert others == ["encoder.0.0.0.weight", "heads.0.weight"]
    assert len(matrices) + len(others) + len(undecayed) == len(names)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.0]
    depthwise, pointwise = nn.Conv3d(4, 4, 3, groups=4), nn.Conv3d(4, 8, 1)
    assert not Muon([depthwise.weight, pointwise.weight], 0.1, weight_decay=0).param_groups[0]["params"]


def test_all_other_weights_are_stepped_as_by_adamw() -> None:
    found = []
    for is_muon in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        adamw = torch.optim.AdamW([layer.weight], 0.1, betas=(0.9, 0.99), weight_decay=0.1)
        optimizer = muon(layer.weight, decay=0.1) if is_muon else adamw
        for _ in range(5):
            layer.weight.grad = torch.randn_like(layer.weight)
            optimizer.step()
        found.append(layer.weight.detach())
    torch.testing.assert_close(*found)


def test_a_state_that_is_taken_up_makes_the_steps_that_were_to_come() -> None:
    gradients = torch.randn(4, 6, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = Convolution()
    optimizer = muon(layer.weight)
    for step, gradient in enumerate(gradients):
        if step == 2:
            state, weight = optimizer.state_dict(), layer.weight.detach().clone()
            layer = Convolution()
            layer.weight.data.copy_(weight)
            optimizer = muon(layer.weight)
            optimizer.load_state_dict(state)
        layer.weight.grad = gradient.clone()
        optimizer.step()
    whole = Convolution()
    optimizer = muon(whole.weight)
    for gradient in gradients:
        whole.weight.grad = gradient.clone()
        optimizer.step()
    assert torch.equal(layer.weight, whole.weight)


def test_a_step_whose_gradients_overflow_in_fp16_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv3d(4, 6, 3, bias=False), nn.Flatten(), nn.LazyLinear(1))
    network(torch.zeros(1, 4, 3, 3, 3))
    optimizer = Optimization(
        network, Muon(network.parameters(), 0.1, weight_decay=0.1, fused=True),
        Precision(torch.device("cpu"), "fp16"), learning_rate=0.1, gradient_clip=1.0, ema_decay=0.0,
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer.step(network(torch.full((1, 4, 3, 3, 3), 1e30)).sum() * 1e30, 0.1, 1, no_clock)
    assert all(map(torch.equal, before, network.parameters()))
    optimizer.step(network(torch.ones(1, 4, 3, 3, 3)).sum(), 0.1, 2, no_clock)
    assert not any(map(torch.equal, before, network.parameters()))


def test_it_learns_what_a_convolution_does() -> None:
    torch.manual_seed(0)
    truth = nn.Conv3d(4, 4, 3, padding=1, bias=False)
    learner = nn.Conv3d(4, 4, 3, padding=1, bias=False)
    optimizer = muon(learner.weight, rate=0.02)
    losses = []
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 100)
        image = torch.randn(2, 4, 6, 6, 6)
        loss = (truth(image) - learner(image)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
