"""The cost of a network, measured on the meta device: for architectures that `cost` has no formula for."""

import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_FP32_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Costs of one network and input.

    Attributes:
        gflop: Operations of the convolutions and matrix products of a forward pass with deep supervision, 10⁹; a
            multiplication with its addition counts 2.
        kept: Numbers that such a pass keeps for backward, the input included, the parameters not.
        largest: Numbers of the largest result of a single operation.
        live: The most numbers at one time in a forward pass without gradients, full resolution only.
        logits: Numbers of the logits of all levels.
    """

    gflop: float
    kept: int
    largest: int
    live: int
    logits: int


def measure(network: nn.Module, input_bczyx: tuple[int, ...]) -> Measured:
    """Runs a network that lies on the meta device, where only shapes are computed.

    Args:
        network: Built under `torch.device("meta")`.
        input_bczyx: Shape of the images.
    """
    image = torch.empty(input_bczyx, device="meta")
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    network.deep_supervision = True  # type: ignore[assignment]
    kept: dict[int, Any] = {image.untyped_storage()._cdata: image.untyped_storage()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(image)
    levels = outputs if isinstance(outputs, list) else [outputs]
    network.deep_supervision = False  # type: ignore[assignment]
    with torch.no_grad(), _Live() as live:
        network(image)
    return Measured(
        gflop=counter.get_total_flops() / 1e9,
        kept=sum(storage.nbytes() for storage in kept.values()) // _FP32_BYTES,
        largest=live.largest // _FP32_BYTES,
        live=live.most // _FP32_BYTES,
        logits=sum(level.numel() for level in levels),
    )


class _Live(TorchDispatchMode):
    """Bytes of the results that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.largest = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self._now += storage.nbytes()
        self.most, self.largest = max(self.most, self._now), max(self.largest, storage.nbytes())
        weakref.finalize(storage, self._drop, storage._cdata).atexit = False

    def _drop(self, address: int) -> None:
        self._now -= self._sizes.pop(address)
