"""Which folds a round of self-training takes where none is named."""

import logging
from collections.abc import Sequence

from flaresemi.errors import ConfigError
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage
from flaresemi.workspace import Workspace

#: With fewer labeled cases, one fold holds out too few to judge a round by: all folds take part (chosen).
FEW_LABELS = 25

logger = logging.getLogger(__name__)


def usual_folds(workspace: Workspace) -> tuple[str, ...]:
    """The folds to run rounds with, among those that are trained and validated; if none is, among all. Logs why.

    Fold 0, or if only others are trained, the first of them. Where one fold holds too few cases out to judge a round
    by, and no two hold out the same, every one. Chains that have begun keep their folds: with another one, scores would
    be calibrated on other cases, and what has been selected and trained would be discarded.

    Raises:
        ConfigError: there is one labeled case, and therefore no fold.
    """
    folds, why = folds_and_reason(workspace)
    if why:
        logger.info("%s", why)
    return folds


def folds_and_reason(workspace: Workspace) -> tuple[tuple[str, ...], str]:
    """As `usual_folds`, with the reason in words; empty where it is fold 0, as usual."""
    splits = load_splits(workspace.splits)
    if not splits.folds:
        raise ConfigError(
            "with one labeled case, nothing can be held out to judge a round by",
            where=workspace.splits,
            fix="label more cases, or go on unjudged: --fold all --rounds 1",
        )
    folds = tuple(str(number) for number in range(len(splits.folds)))
    trained = tuple(fold for fold in folds if _is_validated(workspace, fold)) or folds
    count = len(splits.case_ids)
    if count >= FEW_LABELS or splits.held_out_twice(folds):
        why = ""
        if trained[0] != "0":
            why = f"fold {trained[0]} takes part, since fold 0 is not trained and validated"
        elif count < FEW_LABELS:
            why = f"fold 0 takes part alone: folds of {splits.given or workspace.splits} hold out the same cases"
        return trained[:1], why
    taken = _begun(workspace, folds) or trained
    if taken == folds:
        return taken, f"{count} labeled cases are few: all {len(folds)} folds take part (--fold 0: that one alone)"
    if taken == trained:
        told = f"every fold that is trained and validated takes part: {', '.join(taken)} (of {len(folds)} folds)"
        return taken, f"{count} labeled cases are few: {told}"
    others = " ".join(fold for fold in folds if fold in taken or fold in trained)
    return (
        taken,
        f"the chains of fold(s) {', '.join(taken)} continue (--fold {others}: with all folds that are trained)",
    )


def _is_validated(workspace: Workspace, fold: str) -> bool:
    return (workspace.model(fold, Stage.FINE).validation / "summary.json").is_file()


def _begun(workspace: Workspace, folds: Sequence[str]) -> tuple[str, ...]:
    """The folds of the chains that have begun and are judged together; of several such sets, the largest."""
    judged = (tuple(path.stem.split("_")[1:]) for path in sorted(workspace.verdict(("0",)).parent.glob("folds_*.json")))
    begun = [each for each in judged if {*each} <= {*folds} and any(_has_begun(workspace, fold) for fold in each)]
    return max(begun, key=len, default=())


def _has_begun(workspace: Workspace, fold: str) -> bool:
    return workspace.round(fold, 1).state.is_file()
