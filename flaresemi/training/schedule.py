"""Learning rate and weight averaging as functions of the iteration alone, so that a resumed run needs no memory."""

import dataclasses
import math
from collections.abc import Sequence

import torch

from flaresemi.networks.compiling import load_compiler
from flaresemi.ranges import Iterations, IterationsSoFar
from flaresemi.training.config import Recipe
from flaresemi.training.muon import Muon


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """After so many steps, a training was given another number of steps in all."""

    iteration: IterationsSoFar
    total_iterations: Iterations


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Where on the schedule of its recipe a training is after so many steps.

    Places are counted in steps of the recipe. Without decisions step and place are one. A decision leaves the place
    where it is and spreads the rest of the schedule evenly over the steps that are left, so that whatever was decided
    when, the learning rate is continuous in the place and the last step ends at the end of the schedule.

    Attributes:
        recipe: Its `total_iterations` are the length of the schedule.
        decisions: In the order of their iterations.
    """

    recipe: Recipe
    decisions: tuple[Decision, ...] = ()

    @property
    def total_iterations(self) -> int:
        """Steps in all, as decided last."""
        return self.decisions[-1].total_iterations if self.decisions else self.recipe.total_iterations

    def decided(self, iteration: int, total_iterations: int) -> "Schedule":
        """The same with one more decision."""
        decision = Decision(iteration=iteration, total_iterations=total_iterations)
        return Schedule(self.recipe, (*self.decisions, decision))

    def place(self, iteration: int) -> float:
        """The place after so many steps."""
        place, since, total = 0.0, 0, self.recipe.total_iterations
        if not self.decisions:
            return iteration
        for decision in self.decisions:
            if decision.iteration > iteration:
                break
            place = self._on(place, since, total, decision.iteration)
            since, total = decision.iteration, decision.total_iterations
        return self._on(place, since, total, iteration)

    def _on(self, place: float, since: int, total: int, iteration: int) -> float:
        end = self.recipe.total_iterations
        return end if iteration >= total else place + (end - place) * (iteration - since) / (total - since)

    def learning_rate(self, iteration: int) -> float:
        """Of the step after so many."""
        return learning_rate(self.recipe, self.place(iteration))

    @property
    def epochs(self) -> int:
        """How many epochs there are: a part of the schedule each."""
        return math.ceil(self.recipe.total_iterations / self.recipe.iterations_per_epoch)

    def epochs_done(self, iteration: int) -> int:
        """How many epochs have ended after so many steps."""
        is_complete = iteration >= self.total_iterations
        return self.epochs if is_complete else math.floor(self.place(iteration) / self.recipe.iterations_per_epoch)

    def ends_epoch(self, iteration: int) -> bool:
        """Whether an epoch ends with this step."""
        return self.epochs_done(iteration) > self.epochs_done(iteration - 1)

    def validations_done(self, iteration: int, wanted: int) -> int:
        """How many of about `wanted` validations, spread over the epochs, are due after so many steps."""
        if not wanted:
            return 0
        every, epochs = max(self.epochs // wanted, 1), self.epochs_done(iteration)
        return epochs // every + (epochs == self.epochs and epochs % every > 0)

    def is_validating(self, iteration: int, wanted: int) -> bool:
        """Whether a validation is due with this step."""
        return self.validations_done(iteration, wanted) > self.validations_done(iteration - 1, wanted)

    def percents(self, iteration: int, wanted: tuple[int, ...]) -> list[int]:
        """The parts of the schedule, of those wanted, that are reached with this step."""
        before, after = self.place(iteration - 1), self.place(iteration)
        places = marks(self.recipe.total_iterations, wanted)
        return [percent for place, percent in places.items() if before < place <= after]


def marks(total_iterations: int, percents: Sequence[int]) -> dict[int, int]:
    """Percent of a training by the iteration that it falls on."""
    return {max(1, round(total_iterations * percent / 100)): percent for percent in percents}


def learning_rate(recipe: Recipe, iteration: float) -> float:
    """Linear warm-up, then polynomial decay with exponent 0.9 to zero.

    Args:
        iteration: Optimizer steps done so far, or the place on the schedule (`Schedule`).

    Source: nnU-Net's poly schedule; the warm-up is the usual one of AdamW.
    """
    if iteration < recipe.warmup_iterations:
        return recipe.learning_rate * (iteration + 1) / recipe.warmup_iterations
    decaying = recipe.total_iterations - recipe.warmup_iterations
    progress = min((iteration - recipe.warmup_iterations) / max(decaying, 1), 1.0)
    return recipe.learning_rate * (1 - progress) ** 0.9


def build_optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """SGD (Nesterov, momentum 0.99: nnU-Net), Muon or AdamW; norm weights and biases are decayed under SGD alone.

    All parameters are changed by one kernel where torch has one; it computes the same up to rounding.
    """
    load_compiler()
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
    if recipe.optimizer == "muon":
        return Muon(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.learning_rate, betas=(0.9, 0.99), fused=fused)


class AveragedWeights:
    """Exponential moving average of a network's floating-point weights; what counts something is taken over."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: torch.nn.Module, iteration: int) -> None:
        """Moves the average toward the network; early on it follows closely (decay (1 + i) / (10 + i))."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        pairs = [(self.weights[name], value) for name, value in network.state_dict().items()]
        moving = [(own, value) for own, value in pairs if own.is_floating_point()]
        torch._foreach_lerp_([own for own, _ in moving], [value for _, value in moving], 1 - decay)
        for own, value in pairs:
            if not own.is_floating_point():
                own.copy_(value)
