"""The engine that runs a trained network: torch or OpenVINO, and its precision; the fastest by a short check."""

import functools
import itertools
import logging
import math
import time
from typing import Literal

import torch
from torch import Tensor, nn

from flaresemi import __version__
from flaresemi.compute.card import Card
from flaresemi.compute.device import device_name
from flaresemi.compute.precision import Precision, PrecisionName, cpu_has_bf16
from flaresemi.errors import ConfigError
from flaresemi.geometry import IntTriple
from flaresemi.machine import available_cores, processor_fact
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, load_weights
from flaresemi.networks.gpu_ways import CLEARLY, Forward, GpuWays
from flaresemi.networks.kept import Kept
from flaresemi.networks.openvino import (
    NotConvertedError,
    OpenVinoNetwork,
    openvino_is_installed,
    openvino_version,
)
from flaresemi.plans import NetworkPlan, StagePlan
from flaresemi.records import record_hash

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]

#: Edge of the window that the check computes, at least. Chosen: large enough to keep a processor busy, and about a
#: second on a slow laptop in all.
_CHECK_SIZE = 32


class Engine:
    """Runs trained networks on one device.

    On a CPU, `auto` computes one small window in every way that this machine offers and takes the fastest: OpenVINO
    where it is installed or torch, bf16 where the processor multiplies it in hardware or fp32. What was found holds
    for all networks that are loaded afterwards. On a GPU it tries the ways to run each plan's networks; see `GpuWays`.
    With a named engine nothing is measured, so that the same machine computes the same numbers every time.

    Args:
        device: Where the networks run.
        precision: Of their computation.
        name: Who computes. OpenVINO runs on the CPU only.
        kept: What the check found, and what OpenVINO compiled, is looked up and kept there.

    Raises:
        ConfigError: OpenVINO is asked for and not installed, or for another device.
    """

    def __init__(
        self,
        device: torch.device,
        precision: PrecisionName = "auto",
        name: EngineName = "auto",
        kept: Kept | None = None,
    ) -> None:
        if name == "openvino" and device.type != "cpu":
            raise ConfigError(f"OpenVINO runs on the CPU, not on '{device}'", fix="use --device cpu or --engine torch")
        if name == "openvino" and not openvino_is_installed():
            raise ConfigError(
                "OpenVINO is not installed", fix='pip install "flaresemi[openvino]", or use --engine torch'
            )
        self.device = device
        self._kept = kept
        self._choices = _choices(device, precision, name)
        self.ways: GpuWays | None = None
        if device.type == "cuda":
            fixed = name != "auto" or torch.are_deterministic_algorithms_enabled()
            about = functools.partial(_machine, device)
            self.ways = GpuWays(Card(device), self._choices[0][1], measured=not fixed, machine=about, kept=kept)

    @property
    def needs_fp32(self) -> bool:
        """Whether activations will surely take four bytes."""
        return all(precision.dtype is None for _, precision in self._choices)

    def windows_per_pass(self, plan: StagePlan, window_zyx: IntTriple) -> int:
        """Windows of a forward pass of the plan's networks, once they are loaded; a CPU gains nothing from more than
        one."""
        return 1 if self.ways is None else self.ways.windows_per_pass(plan, window_zyx)

    def retreat(self) -> None:
        """Gives back the memory of a GPU that is held for speed alone."""
        if self.ways is not None:
            self.ways.retreat()

    def load(self, checkpoint: Checkpoint) -> Forward:
        """The network of a checkpoint, ready to compute.

        Raises:
            CheckpointError: the weights do not fit the plan.
        """
        if self.ways is not None:
            return self.ways.load(trained_network(checkpoint).to(self.device), checkpoint.plan)
        if len(self._choices) > 1:
            return self._chosen(checkpoint)
        kept = self._kept_program(checkpoint)
        if kept is not None:
            return kept
        forward = _forward(trained_network(checkpoint).to(self.device), *self._choices[0])
        self._keep_program(checkpoint, forward)
        return forward

    def _chosen(self, checkpoint: Checkpoint) -> Forward:
        """The network, computed in the way that is the fastest by an earlier check, or else by one with it."""
        told, network = [_words(choice) for choice in self._choices], checkpoint.plan.network
        question = ("fastest", [_machine(self.device), told, network])
        answer = None if self._kept is None else self._kept.answer(*question)
        if answer in told:
            self._choices = [self._choices[told.index(answer)]]
            logger.info("computing with %s (by an earlier check)", answer)
            return self.load(checkpoint)
        forward = self._fastest(trained_network(checkpoint), network)
        if self._kept is not None:
            self._kept.keep_answer(*question, _words(self._choices[0]))
            self._keep_program(checkpoint, forward)
        return forward

    def _kept_program(self, checkpoint: Checkpoint) -> Forward | None:
        """The network as OpenVINO compiled it in an earlier process, if it did."""
        if self._kept is None or self._choices[0][0] != "openvino":
            return None
        content = self._kept.program(*self._about(checkpoint))
        if content is None:
            return None
        try:
            return OpenVinoNetwork(content, precision=self._choices[0][1].name, threads=torch.get_num_threads())
        except ValueError as problem:
            logger.debug("compiled once more: %s", problem)
            return None

    def _keep_program(self, checkpoint: Checkpoint, forward: Forward) -> None:
        if self._kept is not None and isinstance(forward, OpenVinoNetwork):
            self._kept.keep_program(*self._about(checkpoint), forward.exported())

    def _about(self, checkpoint: Checkpoint) -> tuple[str, object]:
        """Name of the file of a compiled network, and all that its content depends on."""
        machine, precision = _machine(self.device), self._choices[0][1].name
        place = f"{checkpoint.plan.stage.value}-{checkpoint.fold}-{precision}-{record_hash(machine[:3])[:8]}"
        return place, [machine, precision, openvino_version(), checkpoint.weights_hash]

    def _fastest(self, network: nn.Module, plan: NetworkPlan) -> Forward:
        """Tries every choice on this network and keeps to the best one from now on."""
        sizes = (math.ceil(_CHECK_SIZE / divisor) * divisor for divisor in plan.divisor_zyx)
        window = torch.randn(1, plan.input_channels, *sizes)
        forwards = self._forwards(network)
        seconds = [_seconds(forward, window) for forward in forwards]
        best = min(range(len(forwards)), key=lambda index: seconds[index] * (1 if index == 0 else CLEARLY))
        told = [f"{_words(choice)} {1000 * taken:.0f} ms" for choice, taken in zip(self._choices, seconds, strict=True)]
        self._choices = [self._choices[best]]
        logger.info("computing with %s (%s)", _words(self._choices[0]), ", ".join(told))
        return forwards[best]

    def _forwards(self, network: nn.Module) -> list[Forward]:
        """One for each choice; OpenVINO is none where it cannot convert the network."""
        try:
            return [_forward(network, *choice) for choice in self._choices]
        except NotConvertedError as problem:
            logger.warning("%s", problem)
        self._choices = [choice for choice in self._choices if choice[0] != "openvino"]
        return [_forward(network, *choice) for choice in self._choices]


def trained_network(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, for prediction, in main memory.

    Raises:
        CheckpointError: the weights do not fit the plan.
    """
    network = build_network(checkpoint.plan.network)
    network.deep_supervision = False  # type: ignore[assignment]
    load_weights(network, checkpoint, where=f"{checkpoint.plan.stage.value} of fold {checkpoint.fold}")
    return network.eval().requires_grad_(False)


_Choice = tuple[Literal["torch", "openvino"], Precision]


def _choices(device: torch.device, precision: PrecisionName, name: EngineName) -> list[_Choice]:
    """Every way to compute that the user and the machine leave, the likely best first."""
    if device.type != "cpu":
        return [("torch", Precision(device, precision))]
    engines: list[Literal["torch", "openvino"]] = ["openvino"] if openvino_is_installed() else []
    engines = ["openvino"] if name == "openvino" else ["torch"] if name == "torch" else [*engines, "torch"]
    precisions: list[PrecisionName] = [precision]
    if precision == "auto" and name == "auto":
        precisions = ["bf16", "fp32"] if cpu_has_bf16() else ["fp32"]
    return [(engine, Precision(device, kind)) for kind, engine in itertools.product(precisions, engines)]


def _words(choice: _Choice) -> str:
    return f"{choice[0]} {choice[1].name}"


def _machine(device: torch.device) -> list[object]:
    """What the speed of networks, and a compiled one, depend on: processor, what it can do, threads, versions."""
    kernels = [torch.version.cuda, torch.backends.cudnn.version()] if device.type == "cuda" else []
    threads, processor = torch.get_num_threads(), device_name(device)
    flags, versions = processor_fact("flags", "Features"), [__version__, torch.__version__, *kernels]
    return [processor, flags, threads, available_cores(), *versions]


def _forward(network: nn.Module, name: Literal["torch", "openvino"], precision: Precision) -> Forward:
    if name == "openvino":
        return OpenVinoNetwork(network, precision=precision.name, threads=torch.get_num_threads())

    def forward(windows_bczyx: Tensor) -> Tensor:
        with torch.inference_mode(), precision.autocast():
            logits = network(windows_bczyx)
        return logits.to(torch.float32, copy=True)

    return forward


def _seconds(forward: Forward, window: Tensor, tries: int = 3) -> float:
    """Of the fastest call; the first one, which prepares, does not count."""
    forward(window)
    taken = []
    for _ in range(tries):
        start = time.perf_counter()
        forward(window)
        taken.append(time.perf_counter() - start)
    return min(taken)
