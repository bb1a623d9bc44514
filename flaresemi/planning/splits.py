"""Which labeled cases train and which validate. Written once, and never changed by a pseudo-label."""

import collections
import dataclasses
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from flaresemi.errors import ConfigError, PlanError, listed
from flaresemi.planning.dealing import deal
from flaresemi.ranges import Range
from flaresemi.records import load_record, save_record

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1

#: Name of the fold that trains on every labeled case and validates on none.
ALL = "all"

DEFAULT_FOLDS = 5
DEFAULT_SEED = 22


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The cases of one fold, each list sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """K-fold cross-validation over the labeled cases.

    Attributes:
        seed: What the shuffle came from.
        case_ids: All labeled cases, sorted.
        folds: Each case validates in exactly one of them; none when there is only one case, or one group.
        groups: The labeled cases of each group of the dataset when the folds were made, each sorted.
        given: The name of the user's file that they come from; empty where they were dealt. A case of such folds may
            validate in several of them, or in none.
    """

    schema_version: int = SCHEMA_VERSION
    seed: Annotated[int, Range(-(10**18), 10**18)]
    case_ids: tuple[str, ...]
    folds: tuple[Split, ...]
    groups: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    given: str = ""

    def __post_init__(self) -> None:
        known = set(self.case_ids)
        for number, fold in enumerate(self.folds):
            both = set(fold.train) & set(fold.validation)
            if both:
                raise ValueError(f"fold {number} trains and validates on {_some(both)}")
            strangers = (set(fold.train) | set(fold.validation)) - known
            if strangers:
                raise ValueError(f"fold {number} names {_some(strangers)}, not in case_ids")
            if not fold.train or not fold.validation:
                raise ValueError(f"fold {number} needs cases to train and to validate on")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that `fold` accepts."""
        return (*(str(number) for number in range(len(self.folds))), ALL)

    def fold(self, name: str) -> Split:
        """The cases of a fold: '0', '1', ... or 'all'.

        Raises:
            ConfigError: there is no such fold; the message names those that exist.
        """
        if name == ALL:
            return Split(train=self.case_ids, validation=())
        if name not in self.names:
            reason = ""
            if self.given:
                reason = f": {self.given} has {len(self.folds)}"
            elif len(self.folds) < DEFAULT_FOLDS:
                groups = f" in {len(self.groups)} group{_s(self.groups)}" if self.groups else ""
                reason = f": {len(self.case_ids)} labeled case{_s(self.case_ids)}{groups}"
            raise ConfigError(f"there is no fold '{name}'{reason}", fix=f"folds are {', '.join(self.names)}")
        return self.folds[int(name)]

    def held_out_twice(self, names: Collection[str]) -> tuple[str, ...]:
        """The cases that more than one of these folds hold out, sorted; only folds of the user's own have any."""
        found = collections.Counter(case for name in names for case in self.fold(name).validation)
        return tuple(sorted(case for case, count in found.items() if count > 1))

    def divided_groups(self, name: str, groups: Mapping[str, tuple[str, ...]] | None = None) -> tuple[str, ...]:
        """Groups of which a fold trains on some cases and validates on others, each in words.

        Args:
            groups: Those to look at; None: those that the folds were made with.
        """
        fold = self.fold(name)
        told = []
        for group, cases in (self.groups if groups is None else groups).items():
            trained, held_out = (sorted({*cases} & {*side}) for side in (fold.train, fold.validation))
            if trained and held_out:
                told.append(
                    f"fold {name} trains on {listed(trained)} and validates on {listed(held_out)} of group '{group}': "
                    "its scores are optimistic"
                )
        return tuple(told)


def make_splits(
    case_ids: Iterable[str],
    folds: int = DEFAULT_FOLDS,
    seed: int = DEFAULT_SEED,
    *,
    groups: Mapping[str, str] | None = None,
    organs: Mapping[str, Collection[str]] | None = None,
) -> Splits:
    """Assigns the cases to folds, see `deal`: without groups and rare organs, their sizes differ by at most one.

    With fewer cases (or groups) than folds, each validates alone; a single one has no folds, only 'all'.

    Args:
        groups: The group of each case that has one; a group is never divided.
        organs: The organs that each case has.

    Raises:
        ConfigError: fewer than two folds are asked for.
        ValueError: there is no case, or one twice.
    """
    cases = sorted(case_ids)
    if not cases or len(set(cases)) != len(cases):
        raise ValueError("splits need at least one case, and each only once")
    if folds < 2:
        raise ConfigError(f"cross-validation needs at least 2 folds, found {folds}", fix="train on fold 'all' instead")
    made = [
        Split(train=tuple(sorted({*cases} - {*validation})), validation=validation)
        for validation in deal(cases, folds, seed, groups or {}, organs or {})
    ]
    return Splits(seed=seed, case_ids=tuple(cases), folds=tuple(made), groups=members_of(groups or {}, cases))


def load_or_make_splits(
    path: Path,
    case_ids: Iterable[str],
    folds: int | None = None,
    seed: int | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    organs: Mapping[str, Collection[str]] | None = None,
    given: Splits | None = None,
) -> Splits:
    """Reads the splits of a workspace, or makes and writes them when there are none yet; says what they lack.

    A file that exists is never changed: models were trained on it.

    Args:
        given: Folds of the user's own, in place of dealt ones.
        folds: What is asked for; None: 5.
        seed: What is asked for; None: 22.
        groups: The group of each case that has one.
        organs: The organs that each case has.

    Raises:
        PlanError: it is damaged, or was made for other labeled cases.
        ConfigError: fewer than two folds are asked for.
    """
    path = Path(path)
    cases = set(case_ids)
    wanted = given or make_splits(
        cases, folds or DEFAULT_FOLDS, DEFAULT_SEED if seed is None else seed, groups=groups, organs=organs
    )
    if path.exists():
        splits = load_splits(path)
        _refuse_other_cases(splits, cases, path)
        is_other = (seed is not None and splits.seed != seed) or (
            folds is not None and len(splits.folds) != len(wanted.folds)
        )
        if is_other:
            logger.warning("%s stays as it is: --folds and --seed only count when it is made", path)
        _tell_groups(splits, wanted.groups, path)
    else:
        splits = wanted
        save_record(path, splits)
        logger.info("%d labeled cases in %d folds: %s", len(cases), len(splits.folds), path)
    for caution in _untaught(splits, organs or {}):
        logger.warning("%s", caution)
    return splits


def _refuse_other_cases(splits: Splits, cases: set[str], path: Path) -> None:
    new, gone = sorted(cases - set(splits.case_ids)), sorted(set(splits.case_ids) - cases)
    if new or gone:
        parts = [f"{len(ids)} {what} ({_some(ids)})" for ids, what in ((new, "new"), (gone, "gone")) if ids]
        raise PlanError(
            f"the labeled cases have changed since the folds were made: {', '.join(parts)}",
            where=path,
            fix="put the cases back; or remove this file to make new folds, and train again: "
            "models of the old folds have seen cases that would now validate them",
        )


def members_of(groups: Mapping[str, str], cases: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The cases of each group, sorted, of those that are given."""
    members: dict[str, list[str]] = collections.defaultdict(list)
    for case in sorted(cases):
        if case in groups:
            members[groups[case]].append(case)
    return {group: tuple(members[group]) for group in sorted(members)}


def _tell_groups(splits: Splits, groups: dict[str, tuple[str, ...]], path: Path) -> None:
    """Says where folds that were made or edited before do not keep the dataset's groups together."""
    divided = [told for number in range(len(splits.folds)) for told in splits.divided_groups(str(number), groups)]
    for told in divided:
        logger.warning("%s: %s", path, told)
    if splits.groups != groups:
        kept = "they are divided as said above" if divided else "they still keep the groups together"
        logger.warning(
            "%s: the groups in dataset.json are others than when the folds were made; %s. Remove this file to make "
            "new folds, and train again",
            path,
            kept,
        )


def _untaught(splits: Splits, organs: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Organs that some labeled case has, but none of those that a fold trains on."""
    known = sorted({organ for has in organs.values() for organ in has})
    for number, fold in enumerate(splits.folds):
        for organ in known:
            if not any(organ in organs.get(case, ()) for case in fold.train):
                having = [case for case in fold.validation if organ in organs.get(case, ())]
                yield (
                    f"fold {number} trains without {organ}, which only cases that it holds out have "
                    f"({listed(having)}): its models will never segment it; label more such cases, or train "
                    f"fold '{ALL}'"
                )


def load_splits(path: Path) -> Splits:
    """Reads splits.json.

    Raises:
        PlanError: it is missing or damaged.
    """
    return load_record(path, Splits)


def _some(ids: Iterable[str]) -> str:
    names = sorted(ids)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _s(items: Collection[str]) -> str:
    return "" if len(items) == 1 else "s"
