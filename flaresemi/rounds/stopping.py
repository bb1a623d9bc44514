"""Decides whether a chain of rounds has improved, and when it stops."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Annotated

from flaresemi.evaluation.paired import HeldOutDice, mean_and_error, paired_changes
from flaresemi.ranges import AtLeastOne, Few, Range, Share, check_ranges


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """The stop rule's numbers.

    Attributes:
        min_delta: The paired mean Dice over the held-out cases must rise by more than this (and by more than its
            standard error) for a round to become the best.
        patience: Rounds in a row without an improvement before the chain stops.
        max_rounds: Rounds at most, not counting the supervised start.
        collapse: The chain stops at once when the mean Dice of an organ falls below the best round by more than this
            plus the standard error of the fall, so that one case with a lost organ among many is not a collapse.
    """

    min_delta: Share = 0.0
    patience: AtLeastOne = 2
    max_rounds: AtLeastOne = 5
    collapse: Annotated[float, Range(0, 1, above=True)] = 0.10

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgment on a chain after its latest round.

    Attributes:
        best_round: Number of the best round; 0 is the supervised start.
        stop: Whether the chain ends here.
        why: The reason in words, with the numbers.
    """

    best_round: Few
    stop: bool
    why: str


def judge(rounds: Sequence[HeldOutDice], rule: StopRule, vanishing: Sequence[Collection[str]] = ()) -> Verdict:
    """Judges a chain by its pooled held-out real cases.

    Args:
        rounds: One entry per round, from the supervised start on; all with the same cases.
        rule: The stop rule.
        vanishing: Per round from the first, organs that are vanishing by what its students make of other cases; none
            where that is not known.

    Raises:
        ValueError: no round, no case with a score, or rounds with different cases.
    """
    if not rounds or not rounds[0]:
        raise ValueError("a verdict needs at least the supervised start, with held-out cases")
    if not any(rounds[0].values()):
        raise ValueError("no held-out case has an organ that could be scored")
    best, last_improvement, why = 0, 0, "the supervised start"
    for number in range(1, len(rounds)):
        suspected = vanishing[number - 1] if number <= len(vanishing) else ()
        fallen = collapsed_organs(rounds[best], rounds[number], rule.collapse, suspected)
        if fallen:
            organ, drop = min(fallen.items(), key=lambda item: item[1])
            why = f"round {number}: {organ} fell by {-drop:.3f} below round {best}"
            if organ in suspected:
                why += ", and is vanishing in other cases"
            return Verdict(best_round=best, stop=True, why=why)
        changes = paired_changes(rounds[best], rounds[number])
        gain, error = mean_and_error(changes)
        if len(changes) > 1:
            told = f"{gain:+.4f} ± {error:.4f} against round {best} over {len(changes)} held-out cases"
        else:
            told = f"{gain:+.4f} against round {best} on one held-out case, which cannot tell it from chance"
        gained = f"round {number}: {told}"
        if gain > rule.min_delta and gain > error:
            best = last_improvement = number
            why = f"{gained}: an improvement"
        else:
            why = f"{gained}: no improvement"
        if number - last_improvement >= rule.patience:
            return Verdict(best_round=best, stop=True, why=f"{why}, {rule.patience} in a row")
        if number >= rule.max_rounds:
            return Verdict(best_round=best, stop=True, why=f"{why}; {rule.max_rounds} rounds are the most asked for")
    return Verdict(best_round=best, stop=False, why=why)


def collapsed_organs(
    before: HeldOutDice, after: HeldOutDice, limit: float, vanishing: Collection[str] = ()
) -> dict[str, float]:
    """Organs whose mean Dice fell by more than the limit plus its standard error, with that (negative) change.

    A single case counts as it is: it has no standard error. For an organ that is vanishing in other cases, any fall
    beyond its standard error is enough.
    """
    fallen = {}
    for organ in sorted({organ for scores in before.values() for organ in scores}):
        shared = [case for case in before if organ in before[case] and organ in after[case]]
        if not shared:
            continue
        change, error = mean_and_error([after[case][organ] - before[case][organ] for case in shared])
        if change + (error if len(shared) > 1 else 0.0) < (0.0 if organ in vanishing else -limit):
            fallen[organ] = change
    return fallen
