"""The first weights of a training from another model: of other organs, channels, patch or depth, ours or nnU-Net's.

What fits is taken, tensor by tensor: by name and shape; outputs by the name of their organ; inputs by the name of their
channel, new ones from the mean of the old ones. What was taken, and why the rest was not, is a table.
"""

import dataclasses
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from flaresemi.errors import CheckpointError, listed
from flaresemi.inference.models import trained_folds
from flaresemi.labels import LabelSet
from flaresemi.networks.building import build_on_meta
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, load_weights
from flaresemi.nnunet.results import is_nnunet, load_nnunet, load_nnunet_weights
from flaresemi.plans import NetworkPlan, Stage
from flaresemi.ranges import Count
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)

#: Suffix of nnU-Net's checkpoints.
_NNUNET = ".pth"

#: What may be named.
_NAMES = "--init-from names a checkpoint (.pt), a folder of trained models, or a results folder or archive of nnU-Net"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorStart:
    """Where the first numbers of a tensor come from.

    Attributes:
        tensor: Its name in the network.
        taken: How many of its numbers come from the other model.
        numbers: How many it has.
        why: What was taken, or why not.
    """

    tensor: str
    taken: Count
    numbers: Count
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a training began with.

    Attributes:
        file: The other model.
        organs: Those whose outputs were taken, by name.
        channels: Those whose inputs were taken, by name.
        tensors: All of the network.
    """

    file: str
    organs: tuple[str, ...]
    channels: tuple[str, ...]
    tensors: tuple[TensorStart, ...]

    def table(self) -> str:
        """In words, tensors with the same reason in one line."""
        reasons: dict[str, list[TensorStart]] = {}
        for each in self.tensors:
            reasons.setdefault(each.why, []).append(each)
        lines = [f"{'numbers taken':>24}  tensors"]
        for why, tensors in reasons.items():
            taken, numbers = (sum(getattr(each, name) for each in tensors) for name in ("taken", "numbers"))
            names = f"{len(tensors)} tensors" if len(tensors) > 3 else listed([each.tensor for each in tensors])
            lines.append(f"{f'{taken} of {numbers}':>24}  {names}: {why}")
        return "\n".join(lines)


def load_start(path: Path, stage: Stage) -> Checkpoint:
    """The model that a training starts from.

    Args:
        path: A checkpoint of ours or of nnU-Net; a folder of trained models of ours, in which one fold of the stage is
            finished; or a results folder of nnU-Net or its archive, whose first fold is taken.
        stage: The stage that is trained.

    Raises:
        CheckpointError: there is none, several may be meant, or it is damaged.
    """
    if is_nnunet(path):
        return next(iter(load_nnunet(path, alone=True).values()))
    if not path.exists():
        raise CheckpointError("there is no model to start from at this place", where=path, fix=_NAMES)
    if path.is_dir():
        path = _final_weights(path, stage)
    return load_nnunet_weights(path) if path.suffix == _NNUNET else load_checkpoint(path)


def _final_weights(folder: Path, stage: Stage) -> Path:
    """The checkpoint that a folder of models stands for: its own, or that of the only fold whose stage is finished."""
    if (own := ModelFolder(folder).final).is_file():
        return own
    finals = {fold: ModelFolder(path / stage.value).final for fold, path in trained_folds(folder, stage).items()}
    if len(finals) == 1:
        return next(iter(finals.values()))
    if not finals:
        raise CheckpointError(f"no {stage.value} is trained in this folder", where=folder, fix=_NAMES)
    raise CheckpointError(
        f"{stage.value} of several folds is trained here: {', '.join(finals)}",
        where=folder,
        fix=f"name one of them: --init-from {next(iter(finals.values())).parent}",
    )


def start_from(
    network: nn.Module,
    plan: NetworkPlan,
    labels: LabelSet,
    channels: Sequence[str],
    path: Path,
    stage: Stage = Stage.FINE,
) -> Start | None:
    """Puts all weights of another model that fit into a new network.

    Args:
        network: As it is built: what does not fit keeps its random numbers.
        plan: What it is built from.
        labels: What the network's outputs stand for.
        channels: Those of its inputs.
        path: The other model, as `load_start` takes it.
        stage: The stage that is trained.

    Returns:
        What was taken; None where that is everything, the other model being of the same kind.

    Raises:
        CheckpointError: nothing fits.
    """
    model = load_start(path, stage)
    own = network.state_dict()
    ours, theirs = _outputs(labels), _outputs(model.labels)
    regional = model.convention is not None and bool(model.convention.painted)
    if regional:  # a sigmoid each says nothing of the softmax over their combinations
        theirs = []
    same = theirs == ours and model.channels == tuple(channels)
    if same and {name: tensor.shape for name, tensor in own.items()} == {
        name: tensor.shape for name, tensor in model.weights.items()
    }:
        load_weights(network, model)
        return None
    ends = _Ends(
        heads=_axes(plan, output_channels=plan.output_channels + 1),
        first=_axes(plan, input_channels=plan.input_channels + 1),
        rows=_matches(theirs, ours),
        inputs=_matches(model.channels, channels),
        channels=len(model.channels),
    )
    found = [_take(name, tensor, model.weights.get(name), ends) for name, tensor in own.items()]
    beyond = sorted(model.weights.keys() - own.keys())
    if not any(each.taken and own[each.tensor].ndim == 5 and each.tensor not in ends.heads for each in found):
        raise CheckpointError(
            "nothing of this model fits the planned network: its layers have other names or shapes",
            where=path,
            fix="plan a network like it (its features, kernels and block), or leave --init-from out",
        )
    start = Start(
        file=str(path),
        organs=tuple(name for name in labels.names if name in model.labels.names and not regional),
        channels=tuple(name for name in channels if name in model.channels),
        tensors=tuple(found),
    )
    logger.info("the first weights come from %s\n%s", path, start.table())
    if beyond:
        logger.info("left out, since the planned network has no place for them: %s", listed(beyond))
    return start


def _outputs(labels: LabelSet) -> list[frozenset[str]]:
    """The organs that each output stands for: none for background, several where regions overlap."""
    return [frozenset(), *(frozenset(labels.names[i - 1] for i in each.organs) for each in labels.classes)]


def _matches(theirs: Sequence[Hashable], ours: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs of places (ours, theirs) of the same."""
    return [(place, theirs.index(name)) for place, name in enumerate(ours) if name in theirs]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """Where a network meets organs and channels, and which of them another model has, too.

    Attributes:
        heads: The axis of the outputs, by tensor.
        first: The axis of the image's channels, by tensor.
        rows: Places of the same output, (ours, theirs).
        inputs: Places of the same channel, (ours, theirs).
        channels: How many of the other model's inputs are an image's: in a cascade, labels follow.
    """

    heads: Mapping[str, int]
    first: Mapping[str, int]
    rows: list[tuple[int, int]]
    inputs: list[tuple[int, int]]
    channels: Count


def _axes(plan: NetworkPlan, **one_more: int) -> dict[str, int]:
    """The axis of each tensor, by name, that is one longer in the network of a plan with `one_more` of something."""
    shapes, longer = (
        {name: tensor.shape for name, tensor in build_on_meta(each).state_dict().items()}
        for each in (plan, dataclasses.replace(plan, **one_more))  # type: ignore[arg-type]
    )
    return {
        name: axis
        for name, shape in shapes.items()
        for axis in range(len(shape))
        if longer.get(name) == (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
    }


def _is_like(one: Tensor, other: Tensor, axis: int) -> bool:
    """Whether two tensors differ in this axis at most."""
    return one.ndim == other.ndim and one.select(axis, 0).shape == other.select(axis, 0).shape


def _take(name: str, own: Tensor, other: Tensor | None, ends: _Ends) -> TensorStart:
    """Fills one tensor of the network, in place, as far as the other one fits."""

    def told(taken: int, why: str) -> TensorStart:
        return TensorStart(tensor=name, taken=taken, numbers=own.numel(), why=why)

    if other is None:
        return told(0, "random: the other model has no such layer")
    axis = ends.heads.get(name)
    if axis is not None and _is_like(own, other, axis):
        for ours, theirs in ends.rows:
            own.select(axis, ours).copy_(other.select(axis, theirs))
        return told(
            len(ends.rows) * own.select(axis, 0).numel(), "rows of organs with the same name; the others random"
        )
    axis = ends.first.get(name)
    if axis is not None and _is_like(own, other, axis):
        mean = other.narrow(axis, 0, min(ends.channels, other.shape[axis])).mean(dim=axis)
        for place in range(own.shape[axis]):
            own.select(axis, place).copy_(mean)
        for ours, theirs in ends.inputs:
            own.select(axis, ours).copy_(other.select(axis, theirs))
        return told(own.numel(), "channels with the same name; new ones from the mean of the other model's")
    if own.shape != other.shape:
        return told(0, f"random: shape {list(own.shape)}, the other model has {list(other.shape)}")
    own.copy_(other)
    return told(own.numel(), "taken")
