"""Folds that the user brings along, in nnU-Net's form: `[{"train": [...], "val": [...]}, ...]`."""

import collections
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from flaresemi.dataset import Dataset
from flaresemi.errors import ConfigError, DatasetError, PlanError, listed, shown
from flaresemi.planning.splits import ALL, Split, Splits, members_of
from flaresemi.records import closest, load_json

logger = logging.getLogger(__name__)

#: Its name in a dataset folder.
FILE_NAME = "splits_final.json"

_FORM = 'it looks like [{"train": ["case_1", "case_2"], "val": ["case_3"]}, ...], with an entry for every fold'


def given_folds(
    dataset: Dataset, named: Path | None, *, dealt: bool, left_out: Collection[str], present: bool
) -> Splits | None:
    """The user's folds; None: there are none, and they are dealt.

    Args:
        dataset: The usable cases; in its folder, a file of nnU-Net's name is taken.
        named: The file that an option names.
        dealt: Options ask for folds that are dealt, which says more than a file that happens to be there.
        left_out: Labeled cases that are left out.
        present: The workspace has folds already: a file that happens to be there need not be usable.

    Raises:
        ConfigError: a file is named and folds are to be dealt, or the file does not exist.
        DatasetError: as `read_given`.
    """
    if named is not None and dealt:
        raise ConfigError("--splits has the folds: --folds and --seed deal others", fix="leave one of them out")
    path = named or dataset.root / FILE_NAME
    if not path.is_file():
        if named is not None:
            raise ConfigError("file not found", where=path, fix="--splits names a file of folds: " + _FORM)
        return None
    if dealt:
        logger.warning("%s is not used: --folds and --seed ask for folds that are dealt", path)
        return None
    groups = {case.id: case.group for case in dataset.labeled if case.group is not None}
    try:
        return read_given(path, [case.id for case in dataset.labeled], groups=groups, left_out=left_out)
    except DatasetError as problem:
        if named is not None or not present:
            raise
        logger.warning("%s is not used, the folds of the workspace stay: %s", path, problem.what)
        return None


def refuse_others(splits: Splits, given: Splits, path: Path, *, named: bool) -> None:
    """Checks that the folds of a workspace are those of the user's file.

    Args:
        path: Of the workspace's folds, which are never changed.
        named: The user has named the file, and did not only leave it in the dataset folder.

    Raises:
        PlanError: they are others, and the file was named; otherwise that is said.
    """
    if splits.folds == given.folds:
        return
    what = f"the folds of this workspace are not those of {given.given}"
    fix = "remove this file to take those, and train again: models have seen cases that would now validate them"
    if named:
        raise PlanError(what, where=path, fix=fix)
    logger.warning("%s: %s, and stay; %s", path, what, fix)


def read_given(
    path: Path, case_ids: Collection[str], *, groups: Mapping[str, str], left_out: Collection[str] = ()
) -> Splits:
    """Reads the user's folds.

    Args:
        path: The file.
        case_ids: The labeled cases.
        groups: The group of each case that has one.
        left_out: Labeled cases that the user has decided to leave out; they are left out of the folds, too.

    Raises:
        DatasetError: it has another form, names cases that are not labeled or one twice, has a fold without cases to
            train or to validate on, or divides a group between them.
    """
    content = load_json(path, error=DatasetError)
    if not isinstance(content, list) or not content:
        raise DatasetError("a list of folds is expected", where=path, fix=_FORM)
    known, dropped = set(case_ids), set(left_out)
    folds = tuple(_fold(number, entry, path, known | dropped, dropped) for number, entry in enumerate(content))
    splits = Splits(
        seed=0, case_ids=tuple(sorted(known)), folds=folds, groups=members_of(groups, known), given=path.name
    )
    divided = [told for number in range(len(folds)) for told in splits.divided_groups(str(number))]
    if divided:
        raise DatasetError(
            f"a group is on both sides: {divided[0]}",
            where=path,
            fix='move all cases of the group to one side, or correct "groups" in dataset.json',
        )
    if gone := sorted(dropped & {case for entry in content for side in entry.values() for case in side}):
        logger.warning("%s: %d case(s) that are left out are in no fold: %s", path, len(gone), listed(gone))
    for number, fold in enumerate(folds):
        unused = sorted(known - {*fold.train, *fold.validation})
        if unused:
            logger.warning(
                "%s: fold %d neither trains nor validates on %d labeled case(s): %s",
                path,
                number,
                len(unused),
                listed(unused),
            )
    if unused := sorted(known - {case for fold in folds for case in (*fold.train, *fold.validation)}):
        logger.warning("%s: no fold has %s; fold '%s' alone trains on what no fold has", path, listed(unused), ALL)
    return splits


def _fold(number: int, entry: object, path: Path, known: set[str], dropped: set[str]) -> Split:
    if not isinstance(entry, dict) or entry.keys() != {"train", "val"}:
        raise DatasetError(
            f'fold {number} must have "train" and "val" and nothing else, found {shown(repr(entry))}',
            where=path,
            fix=_FORM,
        )
    sides = {}
    for side, cases in entry.items():
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise DatasetError(f'"{side}" of fold {number} must be a list of names of cases', where=path, fix=_FORM)
        twice = sorted(case for case, count in collections.Counter(cases).items() if count > 1)
        if twice:
            raise DatasetError(f'"{side}" of fold {number} names {listed(twice)} twice', where=path)
        unknown = sorted(set(cases) - known)
        if unknown:
            raise DatasetError(
                f"fold {number} names {len(unknown)} case(s) that are not labeled cases of this dataset: "
                f"{listed(unknown)}{closest(unknown[0], known)}",
                where=path,
                fix="names are those of the label maps without their ending; remove cases that are not here",
            )
        sides[side] = tuple(sorted(set(cases) - dropped))
        if not sides[side]:
            what = "train" if side == "train" else "validate"
            raise DatasetError(
                f"fold {number} has no case to {what} on", where=path, fix=f"to train on everything, train fold '{ALL}'"
            )
    both = sorted({*sides["train"]} & {*sides["val"]})
    if both:
        raise DatasetError(f"fold {number} trains and validates on {listed(both)}", where=path)
    return Split(train=sides["train"], validation=sides["val"])
