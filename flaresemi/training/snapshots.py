"""The weights that a training keeps after parts of it, and what becomes of them when it is made longer."""

import dataclasses
import logging
from collections.abc import Sequence

from flaresemi.errors import CheckpointError
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)


def renew_snapshots(folder: ModelFolder, state: Checkpoint, wanted: dict[int, int]) -> None:
    """Makes the snapshots of a training those of one with other marks, so that none of the old ones counts as new.

    A mark that the training has passed gets the kept weights nearest to it, those that it goes on from among them; the
    file says which iteration they are of. A mark that is still to come has no snapshot until then, but for the end:
    the final weights predict until there are new ones. Killed at any moment, it does the same again.

    Args:
        state: What the training goes on from.
        wanted: The marks, see `marks`.
    """
    kept = [state, *_kept(folder, state, sorted(wanted.values()))]
    passed = {mark: percent for mark, percent in wanted.items() if mark <= state.iteration}
    total = max(wanted)
    for mark, percent in passed.items():
        nearest = min(kept, key=lambda each: abs(each.iteration - mark))
        renewed = dataclasses.replace(nearest, total_iterations=total, training_state=None)
        save_checkpoint(folder.snapshot(percent), renewed)
        logger.info(
            "%s: weights of iteration %d of %d, nearest to %d of those that were kept",
            folder.snapshot(percent).name,
            nearest.iteration,
            total,
            mark,
        )
    for percent in sorted(set(wanted.values()) - set(passed.values())):
        if folder.snapshot(percent) != folder.final:
            folder.snapshot(percent).unlink(missing_ok=True)


def _kept(folder: ModelFolder, state: Checkpoint, percents: Sequence[int]) -> list[Checkpoint]:
    """The snapshots that can be read and are earlier weights of this very training."""
    found = []
    for percent in percents:
        try:
            snapshot = load_checkpoint(folder.snapshot(percent))
        except CheckpointError:
            continue
        if snapshot.iteration <= state.iteration and (snapshot.fold, snapshot.plan) == (state.fold, state.plan):
            found.append(snapshot)
    return found
