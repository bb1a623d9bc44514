"""Which unlabeled cases to label next from scratch: chance among the unlike."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from flaresemi.selection import CaseScore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A case to label next.

    Attributes:
        case_id: Its name.
        why: What it stands for, in words.
    """

    case_id: str
    why: str


def label_next(
    cases: Sequence[str],
    scores: Mapping[str, CaseScore],
    expected: Collection[str],
    count: int,
    *,
    seed: int,
    done: Collection[str] = (),
) -> tuple[Suggestion, ...]:
    """One case at random of each of `count` equal parts of the cases, by the volume of all organs together.

    Chosen: rankings by uncertainty, by distance in volumes and sizes, and by both did not beat it
    (benchmarks/results/label_next_few_mr_coarse.md). Source: that chance aware of the foreground is hard to beat was
    found by nnActive (arXiv 2511.19183).

    Args:
        cases: Unlabeled ones.
        scores: Of their pseudo-labels; cases without one, or without an organ of `expected` in it, are left out as
            long as there are `count` others.
        expected: Organs that every labeled case has.
        count: How many to choose, where there are so many.
        seed: The same choice comes of the same seed.
        done: Cases that are labeled meanwhile: what else was chosen stays, until all of it is done.
    """
    left = [name for name in cases if name not in done]
    parts = _parts(cases, scores, expected, count)
    chosen = {part: _by_chance(names, seed) for part, names in enumerate(parts) if names}
    if left and all(name in done for name in chosen.values()):
        return label_next(left, scores, expected, count, seed=seed)
    told = f"by chance, of part {{}} of {len(parts)} by the volume of all organs" if scores else "by chance"
    return tuple(
        Suggestion(case_id=name, why=told.format(part + 1)) for part, name in chosen.items() if name not in done
    )


def _parts(
    cases: Sequence[str], scores: Mapping[str, CaseScore], expected: Collection[str], count: int
) -> list[list[str]]:
    """The cases by volume, in equal parts."""
    whole = [
        name
        for name in cases
        if name in scores
        and not any(organ.is_absent for each, organ in scores[name].organs.items() if each in expected)
    ]
    if len(whole) < count:
        whole = [*cases]
    ranked = sorted(whole, key=lambda name: (_volume_ml(scores.get(name)), name))
    return [list(part) for part in np.array_split(np.array(ranked, object), count) if len(part)]


def _volume_ml(score: CaseScore | None) -> float:
    return 0.0 if score is None else sum(organ.volume_ml for organ in score.organs.values())


def _by_chance(names: Sequence[str], seed: int) -> str:
    """One of them, by a hash, so that no library's generator matters."""
    return min(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
