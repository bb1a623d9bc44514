"""Checkpoint files: everything that prediction needs, as tensors and plain types only."""

import dataclasses
import functools
import hashlib
import logging
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from flaresemi.appearance import Norm
from flaresemi.case_names import is_fold
from flaresemi.confidence import Temperature
from flaresemi.conventions import Convention
from flaresemi.errors import CheckpointError, shown
from flaresemi.files import atomic_path
from flaresemi.labels import LabelSet
from flaresemi.networks.archive import damaged, read_tensors
from flaresemi.networks.cost import parameter_count
from flaresemi.plans import StagePlan
from flaresemi.ranges import Axis, Iterations, IterationsSoFar
from flaresemi.records import dumps, from_plain, parse_json

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1

_FORMAT = "flaresemi checkpoint"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One trained network with all that is needed to predict with it, on a machine without the dataset.

    Attributes:
        plan: The stage that it was trained for.
        body: How the patient is found in an image, as in `Plans`.
        channels: Name of each input channel.
        labels: The organs; output channel `i` is `labels.classes[i - 1]`, 0 is background (unless `convention.painted`
            says otherwise).
        fold: A number, or 'all'.
        iteration: Training steps done.
        total_iterations: Training steps planned.
        weights: The state dict to predict with.
        mirror_axes: Axes (0 = z, 1 = y, 2 = x) that test-time mirroring may flip.
        keep_largest: Names of organs of which only the largest component is kept.
        touching: Groups of names of organs that hang together; what does not is left out, before that.
        norms: The appearance of the dataset's labeled cases; empty in older checkpoints.
        convention: What surrounds the network of a model of nnU-Net; None: flaresemi's own way.
        temperature: What its probabilities are calibrated by; None: no validation has fitted one.
        quarter_turns: Scans are segmented in four turns in the plane of their slices, and the surest is kept.
        training_state: The state to resume from (optimizer and so on; tensors and plain types); None in files that are
            for prediction only, or when it was not asked for.
        version: Of the flaresemi that trained it.
    """

    plan: StagePlan
    body: str
    channels: tuple[str, ...]
    labels: LabelSet
    fold: str
    iteration: int
    total_iterations: int
    weights: dict[str, Tensor]
    mirror_axes: tuple[int, ...] = ()
    keep_largest: tuple[str, ...] = ()
    touching: tuple[tuple[str, ...], ...] = ()
    norms: tuple[Norm, ...] = ()
    convention: Convention | None = None
    temperature: Temperature | None = None
    quarter_turns: bool = False
    training_state: dict | None = None
    version: str = ""

    @property
    def weights_hash(self) -> str:
        """Tells whether two checkpoints predict with the same weights, whatever else was written into them since."""
        digest = hashlib.sha256(self.plan.hash.encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """The part of a checkpoint that is text."""

    plan: StagePlan
    body: str
    channels: tuple[str, ...]
    labels: LabelSet
    fold: str
    iteration: IterationsSoFar
    total_iterations: Iterations
    mirror_axes: tuple[Axis, ...]
    keep_largest: tuple[str, ...]
    version: str
    norms: tuple[Norm, ...] = ()
    touching: tuple[tuple[str, ...], ...] = ()
    convention: Convention | None = None
    temperature: Temperature | None = None
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        if not is_fold(self.fold):  # it becomes the name of a folder
            raise ValueError(f"'fold' must be a number or 'all', found '{self.fold}'")
        if self.convention is not None:
            indices = (*self.convention.painted, *(index for group in self.convention.largest for index in group))
            if any(index >= self.labels.channels for index in indices):
                raise ValueError(f"'convention' names an index above {self.labels.channels - 1}, the last label")


_HEADER_FIELDS = tuple(field.name for field in dataclasses.fields(_Header))


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: a reader finds the old file or the new one, never a part of one.

    Raises:
        OSError: the disk is full or cannot be written to; the old file is left.
    """
    header = _Header(**{name: getattr(checkpoint, name) for name in _HEADER_FIELDS})
    content = {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        "header": dumps(header),
        "weights": {name: tensor.detach().cpu() for name, tensor in checkpoint.weights.items()},
        "training_state": checkpoint.training_state,
    }
    # Given a name, torch would write it into the archive: equal checkpoints shall be equal files.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as problem:  # about a position in the archive, where the disk is full
            if isinstance(problem.__context__, OSError):
                raise problem.__context__ from None
            raise


def load_checkpoint(path: Path, with_training_state: bool = False) -> Checkpoint:
    """Reads a checkpoint to the CPU; no code in the file is run.

    Args:
        with_training_state: Also return what `--continue` needs; without it that part is not kept in memory.

    Raises:
        CheckpointError: the file is missing, cut off or damaged, was not written by `save_checkpoint`, or was written
            by a newer flaresemi; or a weight is NaN or infinite.
    """
    path = Path(path)
    content = read_tensors(path)
    if not isinstance(content, dict) or not _equal(content.get("format"), _FORMAT):
        raise CheckpointError("not a flaresemi checkpoint", where=path, fix="name a .pt file from a model folder")
    if not _equal(content.get("schema_version"), SCHEMA_VERSION):
        found = shown(str(content.get("schema_version")))
        raise CheckpointError(
            f"checkpoint has schema version {found}, this flaresemi reads {SCHEMA_VERSION}",
            where=path,
            fix="it was probably written by a newer flaresemi: update this one",
        )
    try:
        header = from_plain(_Header, parse_json(content["header"]), source=path, error=CheckpointError)
        weights, training_state = content["weights"], content["training_state"]
        _check_content(header, weights, training_state)
    except (KeyError, TypeError, ValueError) as problem:
        raise damaged(path, shown(repr(problem), 200)) from None
    refuse_not_finite(weights, path)
    fields = {name: getattr(header, name) for name in _HEADER_FIELDS}
    return Checkpoint(weights=weights, training_state=training_state if with_training_state else None, **fields)


def stored_weights_hash(path: Path) -> str:
    """The `weights_hash` of a checkpoint file; an unchanged file (size, time) is read only once.

    Raises:
        CheckpointError: as `load_checkpoint`.
        FileNotFoundError: it is not there.
    """
    status = os.stat(path)
    return _stored_weights_hash(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _stored_weights_hash(path: str, size: int, mtime_ns: int) -> str:
    return load_checkpoint(Path(path)).weights_hash


def load_weights(network: nn.Module, checkpoint: Checkpoint, *, where: object = None) -> None:
    """Puts a checkpoint's weights into a network, in place, all or none.

    Args:
        where: The checkpoint's file, for the message.

    Raises:
        CheckpointError: the two differ in a tensor's name or shape; the message names them.
    """
    problems = compare_weights(network, checkpoint.weights)
    if problems:
        told = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(
            f"the checkpoint's weights do not fit the network: {told}",
            where=where,
            fix="it was trained with other plans: use the plan inside the checkpoint, or train again",
        )
    network.load_state_dict(checkpoint.weights)


def compare_weights(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """The differences that keep `weights` from fitting the network: one phrase per tensor, empty when they fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [f"'{name}' is missing" for name in expected if name not in found]
    problems += [f"'{name}' is unknown" for name in found if name not in expected]
    problems += [
        f"'{name}' has shape {list(found[name])}, the network needs {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return problems


def refuse_not_finite(weights: dict[str, Tensor], path: Path) -> None:
    """Checks that no weight is NaN or infinite: such a network finds nothing, or anything, without a word.

    Raises:
        CheckpointError: one is.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"the weights are not finite: '{shown(name)}' holds NaN or infinity",
                where=path,
                fix="the training diverged, or the file was changed: use another checkpoint, or train again with "
                "--precision fp32 or a lower --learning-rate",
            )


def _equal(found: object, expected: object) -> bool:
    return type(found) is type(expected) and found == expected  # tensors compare with everything, voxel by voxel


#: Parameters of a network that may be built whatever its weights are. Chosen: 4 MB of memory.
_HARMLESS = 10**6


def _check_content(header: _Header, weights: object, training_state: object) -> None:
    """Checks that the weights are tensors of about as many numbers as the plan needs, before a network is made of it.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(weights, dict) or not weights or not (training_state is None or isinstance(training_state, dict)):
        raise ValueError("weights and training_state must be tables")
    numbers, announced, stored = 0, 0, {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ValueError("weights must be plain tensors with names")
        numbers += tensor.numel()
        announced += tensor.numel() * tensor.element_size()
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    if announced > sum(stored.values()):
        raise ValueError("the weights announce more numbers than there are")
    needed = parameter_count(header.plan.network)
    if needed > max(numbers, _HARMLESS):  # smaller differences are told tensor by tensor, by `load_weights`
        raise ValueError(f"its plan needs {needed} numbers, its weights are {numbers}")
