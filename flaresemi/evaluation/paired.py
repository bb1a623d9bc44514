"""Two sets of predictions of the same cases, compared case by case."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

#: Dice by organ, by held-out case.
HeldOutDice = Mapping[str, Mapping[str, float]]

#: How sure an interval is.
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """How much more one of two sets of predictions scores, over the cases that have a score in both.

    Attributes:
        mean: Mean over the cases of the difference of their mean Dice.
        half_width: Of its 95 % interval, by Student's distribution; infinite for a single case.
        cases: How many there are.
    """

    mean: float
    half_width: float
    cases: int

    @property
    def is_ahead(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.mean > self.half_width

    @property
    def is_behind(self) -> bool:
        """Whether the whole interval lies below 0."""
        return -self.mean > self.half_width


def paired_difference(before: HeldOutDice, after: HeldOutDice) -> PairedDifference:
    """The gain from one set of predictions to another with its interval.

    Raises:
        ValueError: as `paired_changes`.
    """
    changes = paired_changes(before, after)
    mean, error = mean_and_error(changes)
    width = error * float(stdtrit(len(changes) - 1, (1 + CONFIDENCE) / 2)) if len(changes) > 1 else math.inf
    return PairedDifference(mean=mean, half_width=width, cases=len(changes))


def paired_changes(before: HeldOutDice, after: HeldOutDice) -> list[float]:
    """The change of the mean Dice of every case that has a score in both: of one without any organ, nothing is known.

    Raises:
        ValueError: they are of different cases, or no case has a score in both.
    """
    if before.keys() != after.keys():
        raise ValueError("the two were validated on different cases")
    was, now = mean_by_case(before), mean_by_case(after)
    changes = [now[case] - was[case] for case in sorted(was.keys() & now.keys())]
    if not changes:
        raise ValueError("no case has an organ that was scored in both")
    return changes


def mean_by_case(held_out: HeldOutDice) -> dict[str, float]:
    """The mean Dice over its organs of every case that has a scored one."""
    return {case: float(np.mean(list(scores.values()))) for case, scores in held_out.items() if scores}


def mean_and_error(changes: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which is infinite for one value."""
    if len(changes) < 2:
        return float(changes[0]), math.inf
    return float(np.mean(changes)), float(np.std(changes, ddof=1) / math.sqrt(len(changes)))
