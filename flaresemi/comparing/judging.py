"""Which models predict: by Dice on held-out cases, paired case by case, and by time where that shows no difference."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from flaresemi.comparing.predicting import HeldOutResult, Members
from flaresemi.errors import DatasetError
from flaresemi.evaluation.paired import HeldOutDice, PairedDifference, mean_by_case, paired_difference
from flaresemi.inference.choice import ComparedResult

#: Dice that is given up for a faster model at most, where the cases do not show that it is behind. Chosen: few cases
#: show little, which does not make a large difference a small one.
NEGLIGIBLE_DICE = 0.01

#: Times whose ratio is below this are equal. Chosen: a machine with other work differs by more from case to case.
NOTABLE_RATIO = 1.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What one configuration scored.

    Attributes:
        members: Its models.
        dice: By case, by organ; of a case without any that could be scored, none.
        seconds: Per case.
    """

    members: Members
    dice: HeldOutDice
    seconds: float

    @property
    def name(self) -> str:
        return "+".join(self.members)

    @property
    def mean(self) -> float:
        """Mean over the cases of their mean Dice."""
        return statistics.fmean(mean_by_case(self.dice).values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """The choice.

    Attributes:
        chosen: The models that predict.
        why: In words.
        results: Of all configurations, best first.
    """

    chosen: Members
    why: tuple[str, ...]
    results: tuple[ComparedResult, ...]


def judge(results: Mapping[Members, Sequence[HeldOutResult]], stages: Mapping[str, int]) -> Judgment:
    """Chooses by held-out cases.

    Of single models, the fastest of those whose mean Dice is next to the highest, and not shown to be behind it. An
    average only where it is shown to be ahead of both: it takes the time of all its models.

    Args:
        results: By configuration, all of the same cases.
        stages: Of every model.

    Raises:
        DatasetError: no held-out case has an organ that could be scored.
    """
    all_scored = [scored(members, found) for members, found in results.items()]
    single = [each for each in all_scored if len(each.members) == 1]
    best = max(single, key=lambda each: each.mean)
    alone = _fastest_of_the_best(single)
    together = [each for each in all_scored if len(each.members) > 1]
    ahead = [each for each in together if all(difference(other, each).is_ahead for other in (best, alone))]
    chosen = _fastest_of_the_best(ahead) if ahead else alone
    why = [_told_choice(chosen), *_told_stages(single, stages), *_told_alone(alone, best)]
    if together:
        why.append(
            _told_average(chosen if ahead else max(together, key=lambda each: each.mean), best, taken=bool(ahead))
        )
    ordered = sorted(all_scored, key=lambda each: -each.mean)
    return Judgment(chosen=chosen.members, why=tuple(why), results=tuple(_result(each, best) for each in ordered))


def difference(before: Scored, after: Scored) -> PairedDifference:
    """How far one configuration is ahead of another.

    Raises:
        DatasetError: no case has a score of both.
    """
    try:
        return paired_difference(before.dice, after.dice)
    except ValueError as problem:
        raise DatasetError(
            f"{before.name} and {after.name} cannot be compared: {problem}", fix="compare other folds"
        ) from None


def _fastest_of_the_best(scored: Sequence[Scored]) -> Scored:
    """The fastest of those that are behind the highest mean Dice by next to nothing, and not by more than chance."""
    best = max(scored, key=lambda each: each.mean)
    near = [each for each in scored if _is_near(difference(best, each))]
    fastest = min(near, key=lambda each: each.seconds)
    return fastest if best.seconds >= NOTABLE_RATIO * fastest.seconds else best


def _is_near(gain: PairedDifference) -> bool:
    return abs(gain.mean) <= NEGLIGIBLE_DICE and not (gain.is_ahead or gain.is_behind)


def scored(members: Members, found: Sequence[HeldOutResult]) -> Scored:
    """What a configuration scored on the held-out cases, and how long it took.

    Raises:
        DatasetError: no case has an organ that could be scored.
    """
    dice = {
        result.scores.case_id: {
            name: score.dice for name, score in result.scores.organs.items() if score.dice is not None
        }
        for result in found
    }
    if not any(dice.values()):
        raise DatasetError("no held-out case annotates an organ that could be scored", fix="compare other folds")
    return Scored(
        members=members, dice=dice, seconds=statistics.fmean(sum(result.seconds.values()) for result in found)
    )


def _result(scored: Scored, best: Scored) -> ComparedResult:
    organs: dict[str, list[float]] = {}
    for found in scored.dice.values():
        for organ, dice in found.items():
            organs.setdefault(organ, []).append(dice)
    gain = difference(best, scored)
    return ComparedResult(
        members=scored.members,
        mean_dice=scored.mean,
        dice=mean_by_case(scored.dice),
        organs={organ: statistics.fmean(values) for organ, values in organs.items()},
        seconds=scored.seconds,
        ahead=gain.mean,
        ahead_within=gain.half_width if gain.cases > 1 else None,
    )


def _told_choice(chosen: Scored) -> str:
    what = (
        f"the average of {' and '.join(chosen.members)} predicts"
        if len(chosen.members) > 1
        else f"{chosen.name} predicts"
    )
    return f"{what}: mean Dice {chosen.mean:.4f} over {_cases(chosen)}, {chosen.seconds:.1f} s a case and fold"


def _told_stages(single: Sequence[Scored], stages: Mapping[str, int]) -> Iterator[str]:
    """Whether COARSE earns its place, where there are plans with it and without."""
    kinds = [[each for each in single if stages[each.members[0]] == count] for count in (1, 2)]
    if not all(kinds):
        return
    one, two = (max(kind, key=lambda each: each.mean) for kind in kinds)
    gain = difference(one, two)
    names = f"two stages ({two.name}) and one ({one.name})"
    if gain.is_ahead:
        yield f"two stages ({two.name}) are ahead of one ({one.name}) by {_told(gain)}: keep them"
    elif gain.is_behind:
        yield f"two stages ({two.name}) are behind one ({one.name}) by {_told(gain)}: take one stage"
    elif not _is_near(gain):
        better = "two stages" if gain.mean > 0 else "one stage"
        yield (
            f"the held-out cases are too few to tell {names} apart, {_told(gain, signed=True)} for two: {better} until "
            "more folds are compared"
        )
    elif max(one.seconds, two.seconds) < NOTABLE_RATIO * min(one.seconds, two.seconds):
        yield f"no difference between {names}, {_told(gain, signed=True)} for two, nor in time: take either"
    else:
        slow, fast = sorted((one, two), key=lambda each: -each.seconds)
        taken = "one stage, it is" if fast is one else "two stages, they are"
        yield (
            f"no difference between {names}, {_told(gain, signed=True)} for two: take {taken} "
            f"{slow.seconds / fast.seconds:.1f} times as fast"
        )


def _told_alone(alone: Scored, best: Scored) -> Iterator[str]:
    """Why a single model with a lower mean was preferred."""
    if alone is not best:
        yield (
            f"{alone.name} is {best.seconds / alone.seconds:.1f} times as fast as {best.name}, which has the highest "
            f"mean of single models, {_told(difference(alone, best), signed=True)}: no more than chance"
        )


def _told_average(average: Scored, best: Scored, *, taken: bool) -> str:
    gain, times = difference(best, average), average.seconds / max(best.seconds, 1e-9)
    if taken:
        return (
            f"the average is ahead of {best.name}, the best by itself, by {_told(gain)}, in {times:.1f} times its time"
        )
    told = f"{average.name}, the best of them, has {_told(gain, signed=True)} against {best.name}"
    return f"no average is shown to be worth the time of its models: {told}, in {times:.1f} times its time"


def _told(gain: PairedDifference, *, signed: bool = False) -> str:
    """A difference with its interval."""
    mean = f"{gain.mean:+.4f}" if signed else f"{abs(gain.mean):.4f}"
    if gain.cases == 1:
        return f"{mean} Dice on one held-out case"
    return f"{mean} ± {gain.half_width:.4f} Dice on {gain.cases} held-out cases"


def _cases(scored: Scored) -> str:
    count = len(mean_by_case(scored.dice))
    return f"{count} held-out case{'s' if count > 1 else ''}"
