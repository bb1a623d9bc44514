"""Which models labeled the rounds: whether they still are those that are there, or came from outside."""

import itertools
from collections.abc import Sequence

from flaresemi.errors import SelectionError
from flaresemi.plans import Stage, load_plans
from flaresemi.pseudolabels.teachers import made_with, teacher_files
from flaresemi.rounds.state import RoundConfig, load_state
from flaresemi.selection import OUTSIDE
from flaresemi.training.validation import former_files
from flaresemi.workspace import ModelFolder, Workspace


def refuse_other_teachers(workspace: Workspace, folds: Sequence[str], rounds: int) -> None:
    """Checks that the models that labeled the first rounds have not changed since; later rounds build on them.

    Deleted files are no sign of a change: nothing needs the models of an earlier round any more. Neither is what a
    validation writes into a file of the same weights.

    Args:
        workspace: Where the rounds lie.
        folds: Of the chains.
        rounds: How many complete rounds to check.

    Raises:
        SelectionError: the models that labeled a round were trained again, or replaced.
    """
    two_stage = rounds > 0 and load_plans(workspace.plans).two_stage
    for number, fold in itertools.product(range(1, rounds + 1), folds):
        folder = workspace.round(fold, number)
        state = load_state(folder.state)
        fine, coarse = (workspace.round_model(fold, number - 1, stage) for stage in (Stage.FINE, Stage.COARSE))
        teachers = (fine, coarse if two_stage else None)
        if state is None or not all(path.is_file() for path in teacher_files(*teachers)):
            continue
        if state.made_with[:1] == (OUTSIDE,):  # it may have gone elsewhere since
            continue
        if not _made_the_same(state.made_with, teachers, state.config):
            raise SelectionError(
                f"round {number} is complete, but the models that labeled it have changed since",
                where=folder.root,
                fix="restore them, or remove this folder and those of later rounds to run these rounds again",
            )


def taught_outside(workspace: Workspace, folds: Sequence[str]) -> bool:
    """Whether a model from outside labeled the first round of some chain: nothing says what that was trained on.

    Raises:
        SelectionError: the record of a round is damaged.
    """
    states = [load_state(workspace.round(fold, 1).state) for fold in folds]
    return any(state is not None and state.made_with[:1] == (OUTSIDE,) for state in states)


def _made_the_same(
    recorded: tuple[str, ...], teachers: tuple[ModelFolder, ModelFolder | None], config: RoundConfig
) -> bool:
    """Whether pseudo-labels that were made with these files are those of the models as they are now."""
    now = made_with(*teachers, tta=config.tta, ignore_contested=config.ignore_contested)
    former = {model.final: former_files(model) for model in teachers if model is not None}
    files = (*teacher_files(*teachers), *[None] * len(now))  # behind the files stand options
    return len(recorded) == len(now) and all(
        was == present or (path is not None and was in former.get(path, ()))
        for was, present, path in zip(recorded, now, files, strict=False)
    )
