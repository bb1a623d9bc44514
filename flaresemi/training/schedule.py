"""Learning rate and weight averaging as functions of the iteration alone, so that a resumed run needs no memory."""

import torch

from flaresemi.training.config import Recipe


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Linear warm-up, then polynomial decay with exponent 0.9 to zero.

    Args:
        iteration: Optimizer steps done so far.

    Source: nnU-Net's poly schedule; the warm-up is AdamW's usual one.
    """
    if iteration < recipe.warmup_iterations:
        return recipe.learning_rate * (iteration + 1) / recipe.warmup_iterations
    decaying = recipe.total_iterations - recipe.warmup_iterations
    progress = min((iteration - recipe.warmup_iterations) / max(decaying, 1), 1.0)
    return recipe.learning_rate * (1 - progress) ** 0.9


def build_optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """SGD (Nesterov, momentum 0.99: nnU-Net) or AdamW; norm weights and biases are not decayed under AdamW.

    All parameters are changed by one kernel where torch has one; it computes the same up to rounding.
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.learning_rate,
            momentum=0.99,
            nesterov=True,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.learning_rate, betas=(0.9, 0.99), fused=fused)


class AveragedWeights:
    """Exponential moving average of a network's floating-point weights."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: torch.nn.Module, iteration: int) -> None:
        """Moves the average toward the network; early on it follows closely (decay (1 + i) / (10 + i))."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        own = list(self.weights.values())
        torch._foreach_lerp_(own, list(network.state_dict().values()), 1 - decay)
