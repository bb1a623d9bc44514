"""Which labeled cases train and which validate. Written once, and never changed by a pseudo-label."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from flaresemi.errors import ConfigError, PlanError
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
        folds: Each case validates in exactly one of them; none when there is only one case.
    """

    schema_version: int = SCHEMA_VERSION
    seed: Annotated[int, Range(-(10**18), 10**18)]
    case_ids: tuple[str, ...]
    folds: tuple[Split, ...]

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
        """What `fold` accepts."""
        return (*(str(number) for number in range(len(self.folds))), ALL)

    def fold(self, name: str) -> Split:
        """The cases of a fold: '0', '1', ... or 'all'.

        Raises:
            ConfigError: there is no such fold; the message names those that exist.
        """
        if name == ALL:
            return Split(train=self.case_ids, validation=())
        if name not in self.names:
            reason = (
                f": {len(self.case_ids)} labeled case{_s(self.case_ids)}" if len(self.folds) < DEFAULT_FOLDS else ""
            )
            raise ConfigError(f"there is no fold '{name}'{reason}", fix=f"folds are {', '.join(self.names)}")
        return self.folds[int(name)]


def make_splits(case_ids: Iterable[str], folds: int = DEFAULT_FOLDS, seed: int = DEFAULT_SEED) -> Splits:
    """Deals the cases to folds that differ by at most one case.

    The order of the ids does not matter. With fewer cases than folds, each case validates alone; a single case has no
    folds, only 'all'. The shuffle sorts by a hash of seed and id, so that it is the same on every machine and with
    every version of numpy.

    Raises:
        ConfigError: fewer than two folds are asked for.
        ValueError: there is no case, or one twice.
    """
    cases = sorted(case_ids)
    if not cases or len(set(cases)) != len(cases):
        raise ValueError("splits need at least one case, and each only once")
    if folds < 2:
        raise ConfigError(f"cross-validation needs at least 2 folds, found {folds}", fix="train on fold 'all' instead")
    count = min(folds, len(cases)) if len(cases) > 1 else 0
    shuffled = sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case}".encode()).digest())
    made = []
    for number in range(count):
        validation = set(shuffled[number::count])
        made.append(
            Split(train=tuple(case for case in cases if case not in validation), validation=tuple(sorted(validation)))
        )
    return Splits(seed=seed, case_ids=tuple(cases), folds=tuple(made))


def load_or_make_splits(
    path: Path, case_ids: Iterable[str], folds: int = DEFAULT_FOLDS, seed: int = DEFAULT_SEED
) -> Splits:
    """Reads the splits of a workspace, or makes and writes them when there are none yet.

    A file that exists is never changed: models were trained on it.

    Raises:
        PlanError: it is damaged, or was made for other labeled cases.
        ConfigError: fewer than two folds are asked for.
    """
    path = Path(path)
    cases = set(case_ids)
    if not path.exists():
        splits = make_splits(cases, folds, seed)
        save_record(path, splits)
        logger.info("%d labeled cases in %d folds: %s", len(cases), len(splits.folds), path)
        return splits
    splits = load_splits(path)
    new, gone = sorted(cases - set(splits.case_ids)), sorted(set(splits.case_ids) - cases)
    if new or gone:
        parts = [f"{len(ids)} {what} ({_some(ids)})" for ids, what in ((new, "new"), (gone, "gone")) if ids]
        raise PlanError(
            f"the labeled cases have changed since the folds were made: {', '.join(parts)}",
            where=path,
            fix="put the cases back; or remove this file to make new folds, and train again: "
            "models of the old folds have seen cases that would now validate them",
        )
    return splits


def load_splits(path: Path) -> Splits:
    """Reads splits.json.

    Raises:
        PlanError: it is missing or damaged.
    """
    return load_record(path, Splits)


def _some(ids: Iterable[str]) -> str:
    names = sorted(ids)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _s(items: tuple[str, ...]) -> str:
    return "" if len(items) == 1 else "s"
