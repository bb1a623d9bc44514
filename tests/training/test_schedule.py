import pytest
import torch

from flaresemi.errors import ConfigError
from flaresemi.training.config import TrainingConfig, local_batch_size, resolve
from flaresemi.training.schedule import AveragedWeights, build_optimizer, learning_rate


def test_the_optimizer_follows_the_length() -> None:
    assert resolve(TrainingConfig(), 250_000).optimizer == "sgd"
    assert resolve(TrainingConfig(), 2_000).optimizer == "muon"
    assert resolve(TrainingConfig(optimizer="sgd"), 2_000).optimizer == "sgd"


def test_wider_networks_have_lower_learning_rates() -> None:
    rates = [resolve(TrainingConfig(), 2_000, features).learning_rate for features in (8, 16, 32)]
    assert rates == pytest.approx([0.008, 0.004, 0.002])
    assert resolve(TrainingConfig(), 250_000, 32).learning_rate == 0.01  # sgd
    assert resolve(TrainingConfig(learning_rate=0.003), 2_000, 32).learning_rate == 0.003


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    recipe = resolve(TrainingConfig(), 1000)
    rates = [learning_rate(recipe, iteration) for iteration in range(1001)]
    peak = recipe.warmup_iterations
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert rates[0] > 0
    assert rates[-1] == 0


def test_epochs_iterations_and_budget_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="one of"):
        TrainingConfig(epochs=1, iterations=5)
    assert TrainingConfig(epochs=3, iterations_per_epoch=20).fixed_iterations == 60
    assert TrainingConfig(time_budget_seconds=60.0).fixed_iterations is None
    assert TrainingConfig().fixed_iterations == 250_000


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert local_batch_size(TrainingConfig(batch_size=6), 2, 3) == 2
    with pytest.raises(ConfigError, match="does not divide"):
        local_batch_size(TrainingConfig(), 2, 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_every_parameter_is_optimized_once(optimizer: str) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.InstanceNorm3d(2, affine=True))
    recipe = resolve(TrainingConfig(optimizer=optimizer), 10)  # type: ignore[arg-type]
    groups = build_optimizer(recipe, list(network.parameters())).param_groups
    assert sorted(map(id, network.parameters())) == sorted(id(p) for group in groups for p in group["params"])


def test_averaged_weights_move_toward_the_network() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    average = AveragedWeights(network, 0.9)
    torch.nn.init.ones_(network.weight)
    values = []
    for iteration in range(1, 100):
        average.update(network, iteration)
        values.append(average.weights["weight"].item())
    assert values == sorted(values)
    assert 0 < values[0] < 0.9
    assert values[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_the_one_kernel_of_the_optimizer_gives_the_numbers_of_the_many(kind: str) -> None:
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        network = torch.nn.Conv3d(2, 3, 3)
        recipe = resolve(TrainingConfig(optimizer=kind), 2_000)  # type: ignore[arg-type]
        optimizer = build_optimizer(recipe, list(network.parameters()))
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(10):
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        weights.append([parameter.detach() for parameter in network.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_averaged_weights_take_counters_over() -> None:
    network = torch.nn.BatchNorm3d(2)
    average = AveragedWeights(network, 0.9)
    network(torch.rand(2, 2, 3, 3, 3))
    average.update(network, 100)
    assert average.weights["num_batches_tracked"] == 1
    expected = 0.1 * network.running_mean
    assert torch.allclose(average.weights["running_mean"], expected)
