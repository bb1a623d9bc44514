"""How a network runs on a GPU: memory format, windows of a pass, recorded as a graph or not; by a short check."""

import collections
import dataclasses
import logging
import math
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flaresemi.compute.card import Card
from flaresemi.compute.precision import Precision
from flaresemi.geometry import IntTriple
from flaresemi.networks.blocks import channels_last
from flaresemi.networks.cost import inference_memory_gib
from flaresemi.networks.kept import Kept
from flaresemi.networks.memory_format import ROUNDING
from flaresemi.plans import StagePlan
from flaresemi.records import record_hash
from flaresemi.system_errors import lacks_gpu_memory

logger = logging.getLogger(__name__)

#: Windows (B, C, Z, Y, X) float32 to logits (B, outputs, Z, Y, X) float32: a tensor of its own, on the same device.
Forward = Callable[[Tensor], Tensor]

#: Another choice than the one before must be faster by this factor: labels shall not change with a busy moment.
CLEARLY = 1.2

#: Voxels that keep a GPU busy. A pass of as many took an H200 5 to 7 ms with two small networks of very different cost,
#: so it hardly waited for the computation (benchmarks/results/gpu_step.md).
_BUSY_VOXELS = 2**20

#: Windows of a pass that are tried.
_COUNTS = (1, 2, 4)

#: Of the free memory, what a pass may take: the image and the sums of its windows lie there, too. Chosen.
MEMORY_SHARE = 0.5

#: A pass is timed so often, and the fastest counts.
_TRIES = 3

#: Passes of a shape after which it is recorded: about what recording costs. Chosen.
_OFTEN = 8

#: Largest relative difference between a pass and its recording, which runs the same kernels unless a library chose
#: others.
_RECORDED = 0.01


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run a network.

    Attributes:
        windows: Of the training patch's size, in a pass.
        channels_last: The memory format; False: contiguous.
        graph: Passes are recorded and replayed, where their shape comes up often.
    """

    windows: int
    channels_last: bool = False
    graph: bool = False

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{layout}, {self.windows} window(s) a pass{', as a graph' if self.graph else ''}"


def windows_per_pass(device: torch.device, window_zyx: IntTriple) -> int:
    """Windows per forward pass where nothing is measured: one on a CPU, which gains nothing from more; on a GPU up to
    four small ones."""
    if device.type == "cpu":
        return 1
    return min(max(round(_BUSY_VOXELS / math.prod(window_zyx)), 1), 4)


class GpuWays:
    """How the networks of one GPU run.

    The first network of a plan computes some windows of the patch's size in every way that memory allows, and the way
    that is the fastest, and gives the same logits up to rounding, holds for all networks of that plan.

    Args:
        card: The GPU.
        precision: Of the networks' computation.
        measured: Whether there is such a check; False: contiguous, windows by `windows_per_pass`, no graph, so that
            the same card computes the same numbers every time.
        machine: Tells what speed depends on besides.
        kept: What the check found is looked up and kept there.

    Attributes:
        found: The way of each plan that a check has found, or an earlier one.
        taken: Of each plan that was checked, milliseconds of a window by way.
    """

    def __init__(
        self,
        card: Card,
        precision: Precision,
        *,
        measured: bool,
        machine: Callable[[], list[object]] = list,
        kept: Kept | None = None,
    ) -> None:
        self.found: dict[str, Way] = {}
        self.taken: dict[str, dict[str, float]] = {}
        self._card, self._precision, self._measured = card, precision, measured
        self._machine, self._kept = machine, kept

    def load(self, network: nn.Module, plan: StagePlan) -> Forward:
        """The network, on the GPU already, in its way."""
        key = _key(plan)
        if self._measured and key not in self.found:
            self.found[key] = self._remembered(network, plan, key)
        forward = self._forward(network, self.found.get(key) or Way(windows=1))
        if isinstance(forward, Graphed):
            _GRAPHED.add(forward)
        return forward

    def windows_per_pass(self, plan: StagePlan, window_zyx: IntTriple) -> int:
        """Windows of this size in a pass of the plan's networks: of larger ones fewer, by their voxels."""
        way = self.found.get(_key(plan))
        if way is None:
            return windows_per_pass(torch.device("cuda"), window_zyx)
        return max(way.windows * math.prod(plan.patch_zyx) // math.prod(window_zyx), 1)

    def retreat(self) -> None:
        """Frees the memory that recordings hold, other engines' too; nothing that is loaded is recorded from now on."""
        for graph in list(_GRAPHED):
            graph.stop("memory ran out")
        self._card.release()

    def _remembered(self, network: nn.Module, plan: StagePlan, key: str) -> Way:
        """The fastest way by an earlier check, or else by one with this network."""
        ways = self._open(plan)
        about = [self._machine(), self._precision.name, plan.network, plan.patch_zyx, [str(way) for way in ways]]
        name = f"gpu-{key[:8]}"
        answer = None if self._kept is None else self._kept.answer(name, about)
        graphs = [dataclasses.replace(way, graph=True) for way in ways]
        for way in (*ways, *graphs):
            if str(way) == answer:
                logger.info("%s: %s (by an earlier check)", plan.stage.value, way)
                return way
        best = self._fastest(network, plan, ways)
        if self._kept is not None and self.taken[key]:  # where nothing could be tried, the next process may
            self._kept.keep_answer(name, about, str(best))
        return best

    def _open(self, plan: StagePlan) -> list[Way]:
        """The plain ways that memory allows: as it would be unmeasured, the other format, other numbers of windows."""
        room = MEMORY_SHARE * self._card.free_gib()
        activations = 2 if self._precision.dtype is None else 1
        fit = [
            count
            for count in sorted({*_COUNTS, windows_per_pass(torch.device("cuda"), plan.patch_zyx)})
            if count == 1 or activations * inference_memory_gib(plan.network, plan.patch_zyx, count) < room
        ]
        usual = max(count for count in fit if count <= windows_per_pass(torch.device("cuda"), plan.patch_zyx))
        counts = [usual, *(count for count in fit if count != usual)]
        first, *others = [[Way(windows=count, channels_last=last) for last in (False, True)] for count in counts]
        return [*first, *(way for pair in others for way in pair)]

    def _fastest(self, network: nn.Module, plan: StagePlan, ways: Sequence[Way]) -> Way:
        """Tries the ways, and the best of them as a graph."""
        check = _Check(self._forward, network, plan, max(way.windows for way in ways), self._card)
        best = clearly_fastest(ways, check.seconds)
        best = best and clearly_fastest([best, dataclasses.replace(best, graph=True)], check.seconds)
        taken = self.taken[_key(plan)] = {str(way): 1000 * seconds for way, seconds in check.taken.items()}
        told = ", ".join(f"{way}: {milliseconds:.2f} ms" for way, milliseconds in taken.items())
        del check
        self._card.release()
        logger.info("%s: %s (%s)", plan.stage.value, best or Way(windows=1), told or "not checked")
        return best or Way(windows=1)

    def _forward(self, network: nn.Module, way: Way, often: int = _OFTEN) -> Forward:
        precision = self._precision

        def forward(windows_bczyx: Tensor) -> Tensor:
            with torch.inference_mode(), precision.autocast():
                logits = network(channels_last(windows_bczyx) if way.channels_last else windows_bczyx)
            return logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

        return Graphed(forward, self._card.recorded, often) if way.graph else forward


def clearly_fastest(ways: Sequence[Way], seconds: Callable[[Way], float | None]) -> Way | None:
    """The fastest way, where one that comes later must be clearly faster than the best before it.

    Args:
        ways: The preferred ones first.
        seconds: Of a window; None where the way is out of the question.

    Returns:
        None where all are.
    """
    best: tuple[Way, float] | None = None
    for way in ways:
        taken = seconds(way)
        if taken is not None and (best is None or taken * CLEARLY < best[1]):
            best = way, taken
    return None if best is None else best[0]


class _Check:
    """Ways to run a network, tried on windows of noise.

    Attributes:
        taken: Seconds of a window, by way; without those that are out of the question.
    """

    def __init__(
        self,
        build: Callable[[nn.Module, Way, int], Forward],
        network: nn.Module,
        plan: StagePlan,
        most: int,
        card: Card,
    ) -> None:
        self.taken: dict[Way, float] = {}
        self._build, self._network, self._card = build, network, card
        noise = torch.Generator().manual_seed(0)  # the global one is not for this
        windows = torch.randn(most, plan.network.input_channels, *plan.patch_zyx, generator=noise)
        self._expected: Tensor | None = None
        try:
            self._windows = windows.to(card.device)
            expected = build(network, Way(windows=1), 0)(self._windows[:1])
            # With what is not finite nothing agrees; the image that comes may be another matter.
            self._expected = expected if torch.isfinite(expected).all() else None
        except RuntimeError as problem:
            if not lacks_gpu_memory(problem):
                raise
            logger.debug("not even one window fits: nothing is tried")
        if self._expected is None:
            card.release()  # not before the error is gone, whose frames hold memory

    def seconds(self, way: Way) -> float | None:
        """Seconds of a window; None where memory does not suffice, or the numbers are others."""
        if way not in self.taken and self._expected is not None:
            try:
                self._try(way, self._expected)
            except RuntimeError as problem:  # a lack of memory is one, and a kernel that is not there
                logger.debug("%s is out of the question: %s", way, _reason(problem))
            if way not in self.taken:
                self._card.release()
        return self.taken.get(way)

    def _try(self, way: Way, expected: Tensor) -> None:
        forward, windows = self._build(self._network, way, 0), self._windows[: way.windows]
        if not _agree(forward(windows)[:1], expected, ROUNDING):
            logger.warning("%s is out of the question on this GPU: its numbers are not those of one window", way)
            return
        tries = [self._card.seconds(lambda: forward(windows)) for _ in range(_TRIES)]
        self.taken[way] = min(tries) / way.windows


class Graphed:
    """A pass that is recorded when windows of one shape have come often, and then replayed for that shape.

    One recording is held, that of the last such shape. It is only taken where it gives the numbers of the pass itself
    on the same windows. Where it does not, and where anything fails, all passes run as they are from then on.

    Args:
        forward: The pass.
        record: Records it on an example; see `Card.recorded`.
        often: Passes of a shape before it is recorded.
    """

    def __init__(self, forward: Forward, record: Callable[[Forward, Tensor], Forward], often: int = _OFTEN) -> None:
        self._forward, self._record, self._often = forward, record, often
        self._seen: collections.Counter[tuple[int, ...]] = collections.Counter()
        self._recorded: tuple[tuple[int, ...], Forward] | None = None
        self._stopped = False

    def __call__(self, windows_bczyx: Tensor) -> Tensor:
        shape = tuple(windows_bczyx.shape)
        if self._stopped:
            return self._forward(windows_bczyx)
        if self._recorded is not None and self._recorded[0] == shape:
            self._seen.clear()  # of the other shapes, those that come now and then between are not recorded instead
            try:
                return self._recorded[1](windows_bczyx)
            except RuntimeError as problem:
                self.stop(_reason(problem))
            return self._forward(windows_bczyx)  # not before the error is gone, whose frames hold the recording
        self._seen[shape] += 1
        logits = self._forward(windows_bczyx)
        if self._seen[shape] > self._often:
            self._take(windows_bczyx, logits)
        return logits

    def stop(self, reason: str) -> None:
        """Frees the recording; all passes run as they are from now on."""
        if not self._stopped:
            logger.debug("passes are not recorded any more: %s", reason)
        self._recorded, self._stopped = None, True

    def _take(self, windows: Tensor, logits: Tensor) -> None:
        self._recorded = None  # two of them need not fit
        self._seen.clear()  # shapes that come by turns are not recorded by turns
        try:
            recorded = self._record(self._forward, windows)
            same = _agree(recorded(windows), logits, _RECORDED)
        except RuntimeError as problem:  # a network that looks at its values, a lack of memory
            self.stop(_reason(problem))
            return
        if same:
            self._recorded = tuple(windows.shape), recorded
        else:
            self.stop("a recording gave other numbers")


#: All passes of this process that may hold a recording: they share one memory.
_GRAPHED: weakref.WeakSet[Graphed] = weakref.WeakSet()


def _agree(found: Tensor, expected: Tensor, rounding: float) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= rounding * expected.norm())


def _reason(problem: RuntimeError) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)


def _key(plan: StagePlan) -> str:
    return record_hash([plan.network, plan.patch_zyx])
