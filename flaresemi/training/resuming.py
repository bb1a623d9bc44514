"""The state that a training is resumed from: the newest one that is whole."""

import logging
import os

from flaresemi.errors import CheckpointError
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)


def has_state(folder: ModelFolder) -> bool:
    """Whether a training was begun and saved here."""
    return folder.latest.exists() or folder.previous.exists()


def save_state(folder: ModelFolder, checkpoint: Checkpoint) -> None:
    """Writes the newest state; until the training is complete, the one before stays beside it."""
    following = folder.latest.with_name("checkpoint_next.pt")
    save_checkpoint(following, checkpoint)
    is_complete = checkpoint.iteration == checkpoint.total_iterations
    if folder.latest.exists() and not is_complete:
        os.replace(folder.latest, folder.previous)
    os.replace(following, folder.latest)
    if is_complete:
        folder.previous.unlink(missing_ok=True)


def load_state(folder: ModelFolder, with_training_state: bool = False) -> Checkpoint:
    """Reads the newest state, or the one before where that is damaged.

    Raises:
        CheckpointError: neither is whole.
    """
    try:
        return load_checkpoint(folder.latest, with_training_state)
    except CheckpointError as problem:
        if not folder.previous.exists():
            raise
        logger.warning("%s\n%s takes its place, the state before", problem, folder.previous.name)
    return load_checkpoint(folder.previous, with_training_state)


def refuse_fewer(state: Checkpoint, wanted: int | None, folder: ModelFolder) -> None:
    """Checks that a training that goes on has not done more steps already than it shall have in all.

    Args:
        wanted: So many; None where a time budget decides.

    Raises:
        CheckpointError: it has; to end it here would leave weights whose learning rate has never fallen.
    """
    if wanted is not None and state.iteration > wanted:
        raise CheckpointError(
            f"this training has {state.iteration} iterations already, more than the {wanted} asked for",
            where=folder.latest,
            fix="ask for more, or begin anew with --restart",
        )
