"""The checkpoints that label: their files and hashes, and whether they match each other and the plans."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flaresemi.errors import CheckpointError, ConfigError, SelectionError
from flaresemi.files import content_hash
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint
from flaresemi.plans import Plans, StagePlan
from flaresemi.records import record_hash
from flaresemi.workspace import ModelFolder

#: Snapshots that the final weights are compared with, in percent of the training.
COMPARED_SNAPSHOTS = (36, 66)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Teachers:
    """The checkpoints that label: FINE's weights at several points of one training, and a COARSE model.

    Attributes:
        fine: The weights at the end of the training, whose masks are saved.
        snapshots: Earlier weights of the same training, whose masks are compared with the saved ones.
        coarse: Finds the region; None where FINE works on the whole body.
        made_with: Hashes of all these files, for the record.
    """

    fine: Checkpoint
    snapshots: tuple[Checkpoint, ...]
    coarse: Checkpoint | None
    made_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.snapshots:
            raise ValueError("agreement needs at least one snapshot to compare with")
        if any(snapshot.plan != self.fine.plan for snapshot in self.snapshots):
            raise ValueError("the snapshots were trained with other plans than the final weights")
        if self.fine.plan.region == "organs" and self.coarse is None:
            raise ValueError("FINE works in the organs' box: COARSE is needed to find it")


def teacher_files(fine: ModelFolder, coarse: ModelFolder | None) -> tuple[Path, ...]:
    """FINE's final weights, its earlier snapshots, and COARSE's final weights where there is a COARSE."""
    files = (fine.final, *(fine.snapshot(percent) for percent in COMPARED_SNAPSHOTS))
    return files if coarse is None else (*files, coarse.final)


def made_with(
    fine: ModelFolder, coarse: ModelFolder | None, *, tta: bool = False, ignore_contested: bool = False
) -> tuple[str, ...]:
    """Everything that determines a pseudo-label: hashes of these files, in this order, and the options that are on.

    Raises:
        SelectionError: one is missing.
    """
    options = {"tta": tta, "contested voxels ignored": ignore_contested}
    return (*(_hash(path) for path in teacher_files(fine, coarse)), *(name for name, is_on in options.items() if is_on))


def judged_weights_hash(fine: ModelFolder) -> str:
    """Hash of the weights that a calibration is valid for: the final ones and the snapshots compared with them.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    return weights_hash([load_checkpoint(path) for path in teacher_files(fine, None)])


def weights_hash(checkpoints: Sequence[Checkpoint]) -> str:
    """One hash of the weights of several checkpoints."""
    return record_hash([checkpoint.weights_hash for checkpoint in checkpoints])


def load_teachers(
    fine: ModelFolder, coarse: ModelFolder | None, plans: Plans, *, tta: bool = False, ignore_contested: bool = False
) -> Teachers:
    """Loads the models that label.

    Args:
        fine: The folder of FINE's training.
        coarse: The folder of COARSE's training; None where FINE works on the whole body.
        plans: The plans of the workspace, which the students are trained by.
        tta: Whether they will segment mirrored images, too; for the record.
        ignore_contested: Whether voxels will be left out on which they disagree; likewise.

    Raises:
        SelectionError: a file is missing.
        CheckpointError: one is damaged.
        ConfigError: one was trained with other plans.
    """
    hashes = made_with(fine, coarse, tta=tta, ignore_contested=ignore_contested)
    final, *snapshots = (_load(path, plans.fine) for path in teacher_files(fine, None))
    found = None if coarse is None else _load(coarse.final, plans.coarse)
    return Teachers(fine=final, snapshots=tuple(snapshots), coarse=found, made_with=hashes)


def _hash(path: Path) -> str:
    try:
        return content_hash(path)
    except FileNotFoundError:
        folder = ModelFolder(path.parent)
        what, fix = f"{path.name} is missing", "finish the training that writes it: flaresemi_train --continue"
        if path != folder.final and folder.final.exists():
            what += ", the weights that the final ones are compared with"
            fix = "put it back, or train this model again (flaresemi_train --restart): snapshots are kept by default"
        raise SelectionError(what, where=path, fix=fix) from None


def _load(path: Path, plan: StagePlan) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    if checkpoint.plan.stage != plan.stage:
        raise CheckpointError(
            f"this is a {checkpoint.plan.stage.value} model, expected {plan.stage.value}",
            where=path,
            fix="put the file back that was there",
        )
    if checkpoint.plan.hash != plan.hash:
        raise ConfigError(
            "a model that labels was trained with other plans than those of the workspace",
            where=path,
            fix="put plans.json back as it was, or train this fold again: flaresemi_train --restart",
        )
    return checkpoint
