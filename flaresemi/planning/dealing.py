"""Assigning cases to folds: as evenly as possible, groups kept together, rare organs spread."""

import collections
import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence


@dataclasses.dataclass(slots=True)
class _Unit:
    """Cases that stay together, and all organs that they have."""

    cases: tuple[str, ...]
    organs: frozenset[str]
    fold: int = -1


def deal(
    case_ids: Collection[str], folds: int, seed: int, groups: Mapping[str, str], organs: Mapping[str, Collection[str]]
) -> list[tuple[str, ...]]:
    """Deals cases to folds whose sizes differ as little as the groups allow; the order of the ids does not matter.

    Cases are shuffled by a hash of seed and id, the same on every machine and with every version of numpy, and dealt
    one by one, large groups first. Only where an organ would be missing from a fold that could have it are cases
    exchanged: first so that every fold can train on it, then so that as many folds as possible are validated on it.

    Args:
        folds: At most so many; no more than there are groups and single cases, none where there is only one.
        groups: The group of each case that has one.
        organs: The organs that each case has, as far as that is known.

    Returns:
        The cases of each fold, sorted.
    """
    members: dict[str, list[str]] = collections.defaultdict(list)
    for case in sorted(case_ids):
        members[f"group {groups[case]}" if case in groups else f"case {case}"].append(case)
    units = [
        _Unit(tuple(cases), frozenset(organ for case in cases for organ in organs.get(case, ())))
        for cases in members.values()
    ]
    units.sort(key=lambda unit: hashlib.sha256(f"{seed}:{unit.cases[0]}".encode()).digest())
    units.sort(key=lambda unit: -len(unit.cases))
    count = min(folds, len(units)) if len(units) > 1 else 0
    sizes = [0] * count
    for unit in units if count else ():
        unit.fold = sizes.index(min(sizes))
        sizes[unit.fold] += len(unit.cases)
    if count:
        _Spreading(units, sizes).improve()
    return [tuple(sorted(case for unit in units if unit.fold == fold for case in unit.cases)) for fold in range(count)]


class _Spreading:
    """Exchanges units between folds as long as rare organs are in too few of them.

    Args:
        units: In the order in which they are tried; their folds are changed.
        sizes: Cases of each fold.
    """

    def __init__(self, units: Sequence[_Unit], sizes: list[int]) -> None:
        self.units = units
        self.sizes = sizes
        self.uneven = max(len(unit.cases) for unit in units)
        everywhere = frozenset.intersection(*(unit.organs for unit in units))
        self.counts = {
            organ: [sum(organ in unit.organs and unit.fold == fold for unit in units) for fold in range(len(sizes))]
            for organ in sorted(frozenset.union(*(unit.organs for unit in units)) - everywhere)
        }

    def improve(self) -> None:
        """Does so until no exchange of two units, and no move of one, helps."""
        while any(self._improve(organ) for organ, counts in self.counts.items() if self._lack(counts) > (0, 0)):
            pass

    def _improve(self, organ: str) -> bool:
        """Brings an organ to one more fold, if that takes it and others from none."""
        for unit, fold, other in self._exchanges(organ):
            changed = (unit.organs ^ other.organs if other else unit.organs) & self.counts.keys()
            before = self._lack(*(self.counts[each] for each in changed))
            source = unit.fold
            self._move(unit, fold)
            if other:
                self._move(other, source)
            even = max(self.sizes) - min(self.sizes) <= self.uneven
            if even and self._lack(*(self.counts[each] for each in changed)) < before:
                return True
            self._move(unit, source)
            if other:
                self._move(other, fold)
        return False

    def _exchanges(self, organ: str) -> Iterator[tuple[_Unit, int, _Unit | None]]:
        """Units with an organ that others in their fold have too, where they could go, and in exchange for which."""
        counts = self.counts[organ]
        without = [fold for fold, count in enumerate(counts) if not count]
        for unit in self.units:
            if organ in unit.organs and counts[unit.fold] > 1:
                for fold in without:
                    yield unit, fold, None
                    for other in self.units:
                        if other.fold == fold:
                            yield unit, fold, other

    def _move(self, unit: _Unit, fold: int) -> None:
        for organ in unit.organs & self.counts.keys():
            self.counts[organ][unit.fold] -= 1
            self.counts[organ][fold] += 1
        self.sizes[unit.fold] -= len(unit.cases)
        self.sizes[fold] += len(unit.cases)
        unit.fold = fold

    def _lack(self, *all_counts: list[int]) -> tuple[int, int]:
        """How many organs a fold cannot train on although it could; in how many folds, together, they are missing."""
        untaught = sum(max(counts) == sum(counts) > 1 for counts in all_counts)
        missing = sum(min(len(counts), sum(counts)) - sum(map(bool, counts)) for counts in all_counts)
        return untaught, missing
