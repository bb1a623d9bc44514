"""Updates of the weights of a network: optimizer, scaled gradients, averaged weights; and their state."""

import copy
import functools

import torch
from torch import nn

from flaresemi.compute.metering import Clock
from flaresemi.compute.precision import Precision
from flaresemi.training.schedule import AveragedWeights


class Optimization:
    """Steps of an optimizer on a network, and the average of its weights.

    Args:
        network: Whose weights change.
        optimizer: Of its parameters.
        precision: Whose scaler keeps small gradients.
        learning_rate: The highest of the schedule. Groups of the optimizer that are made with different rates keep
            their ratios to it.
        gradient_clip: Largest norm of all gradients together.
        ema_decay: Of the averaged weights; 0: none.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        learning_rate: float,
        gradient_clip: float,
        ema_decay: float,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.precision = precision
        self.gradient_clip = gradient_clip
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._shares = [rate / learning_rate if len({*rates}) > 1 else 1.0 for rate in rates]
        self.average = AveragedWeights(network, ema_decay) if ema_decay else None

    def step(self, loss: torch.Tensor, learning_rate: float, iteration: int, clock: Clock) -> None:
        """One step down the gradient of a loss.

        Args:
            iteration: Steps done, with this one.
            clock: Stands around `backward` and `optimizer`.
        """
        for group, share in zip(self.optimizer.param_groups, self._shares, strict=True):
            group["lr"] = share * learning_rate
        with clock("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            self.precision.scaler.scale(loss).backward()
        with clock("optimizer"):
            self.precision.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            if self.average:
                self.average.update(self.network, iteration)

    @functools.cached_property
    def averaged_network(self) -> nn.Module:
        """A network that runs with `weights` as they are at the time, not to be trained."""
        network = copy.deepcopy(self.network)
        for name, value in network.state_dict(keep_vars=True).items():
            value.data = self.weights[name]
        network.deep_supervision = False  # type: ignore[assignment]
        return network.eval().requires_grad_(False)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Those to predict with: the average where there is one."""
        return self.average.weights if self.average else self.network.state_dict()

    def state(self) -> dict[str, dict]:
        """The state that a resumed training needs, besides `weights`."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
        }

    def load(self, state: dict[str, dict], weights: dict[str, torch.Tensor]) -> None:
        """Takes up a state, and the weights that were saved beside it."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # a training in another precision had none
            self.precision.scaler.load_state_dict(state["scaler"])
        if self.average:
            for name, value in self.average.weights.items():  # in place: a network may run with them
                value.copy_(weights[name])
