"""Muon: gradient steps whose matrices are orthogonalized, for convolutions between hidden features."""

from collections.abc import Iterable

import torch

#: Coefficients of the iteration and its steps. Source: Jordan et al., "Muon: An optimizer for hidden layers in neural
#: networks", 2024, https://kellerjordan.github.io/posts/muon.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5

#: Of the steps that are orthogonalized (Nesterov's). Source: as above.
_MOMENTUM = 0.95

#: The root mean square of a step in learning rates, about that of AdamW. Source: Liu et al., arXiv 2502.16982.
_STEP_SIZE = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, but for the convolutions that connect hidden features: their steps are orthogonal matrices.

    The momentum of such a weight, as a matrix with a row for each index of its first axis, is replaced by the nearest
    matrix whose singular values are all about one, so that directions which gradients rarely have are learned as
    fast as the others. What reads or writes one channel alone, heads and other pointwise convolutions, depthwise ones,
    norms and biases keep AdamW.

    Args:
        parameters: Of a network.
        learning_rate: Of both.
        weight_decay: Of all weights but norms and biases.
        fused: AdamW changes all of its parameters in one kernel.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        learning_rate: float,
        *,
        weight_decay: float,
        fused: bool = False,
    ) -> None:
        groups: dict[str, list[torch.Tensor]] = {"matrices": [], "others": [], "undecayed": []}
        for parameter in parameters:
            kind = "matrices" if _connects_hidden(parameter) else "others" if parameter.ndim > 1 else "undecayed"
            groups[kind].append(parameter)
        super().__init__(
            [
                {"params": groups["matrices"], "orthogonal": True},
                {"params": groups["others"], "orthogonal": False},
                {"params": groups["undecayed"], "orthogonal": False, "weight_decay": 0.0},
            ],
            learning_rate,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=fused,
        )
        self._step_supports_amp_scaling = False  # the scaler of fp16 leaves out whole steps, not AdamW's part of them

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step; the gradients of orthogonalized weights are gone afterwards, so that AdamW leaves these alone."""
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is not None:
                    self._step_orthogonally(weight, weight.grad, group["lr"], group["weight_decay"])
                    weight.grad = None
        super().step()

    def _step_orthogonally(self, weight: torch.Tensor, gradient: torch.Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # a state of AdamW's has one
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        matrix = torch.lerp(gradient, state["momentum"], _MOMENTUM).reshape(len(weight), -1)
        size = _STEP_SIZE * max(matrix.shape) ** 0.5
        weight.mul_(1 - rate * decay)
        weight.add_(orthogonalized(matrix).reshape(weight.shape), alpha=-rate * size)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with about the same singular vectors, whose singular values lie between about 0.7 and 1.2.

    Those below a thousandth of the largest one may stay smaller. Newton-Schulz iteration in single precision; its
    factors commute, so they are multiplied first, as small matrices, and only their product meets the wide one.

    Args:
        matrix: Of any shape; of zeros, it stays as it is.
    """
    first, second, third = _COEFFICIENTS
    is_tall = len(matrix) > matrix.shape[1]
    wide = (matrix.T if is_tall else matrix).float()
    wide = wide / (wide.norm() + 1e-30)
    gram = wide @ wide.T
    whole = identity = torch.eye(len(gram), device=gram.device)
    for _ in range(_STEPS):
        factor = first * identity + torch.addmm(gram, gram, gram, beta=second, alpha=third)
        gram = factor @ gram @ factor
        whole = factor @ whole
    wide = whole @ wide
    return (wide.T if is_tall else wide).to(matrix.dtype)


def _connects_hidden(parameter: torch.Tensor) -> bool:
    """Whether this is the weight of a convolution over neighbors, of more than one feature to more than one."""
    if parameter.ndim < 3:
        return False
    return min(parameter.shape[:2]) > 1 and parameter[0, 0].numel() > 1
