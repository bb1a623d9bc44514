"""The scores of benchmarks/few.py: kept by draw, arm and case, and tables of them with paired bootstraps."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import running

#: (Dice, NSD) of each organ of each case.
Cases = dict[str, dict[str, tuple[float, float]]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One arm of one draw on one part of the cases.

    Attributes:
        hours: Of labeling and training, all models that it took.
        made: Date, revision and machine.
    """

    cases: Cases
    hours: float
    made: str

    def mean(self, metric: int, organ: str | None = None) -> float:
        """Over the cases, of one organ or of all; metric 0 is Dice, 1 NSD."""
        chosen = [
            [both[metric] for name, both in case.items() if organ in (None, name)] for case in self.cases.values()
        ]
        return float(np.mean(chosen))


class Scores:
    """A file with a JSON line for each draw, arm and part ('development', 'test'). It grows, machine after machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scored = self._load()

    def _load(self) -> dict[tuple[int, str, str], Scored]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ()
        rows = map(json.loads, lines)
        return {(row.pop("draw"), row.pop("arm"), row.pop("part")): Scored(**row) for row in rows}

    def has(self, draw: int, arm: str, part: str) -> bool:
        return (draw, arm, part) in self._scored

    def add(self, draw: int, arm: str, part: str, summary: Path, *, hours: float, made: str) -> None:
        """Keeps what a summary.json of flaresemi_evaluate says."""
        cases = {
            case["case_id"]: {name: (round(o["dice"], 4), round(o["nsd"], 4)) for name, o in case["organs"].items()}
            for case in json.loads(summary.read_text(encoding="utf-8"))["cases"]
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with running.alone(self.path):
            self._scored = self._load()
            self._scored[draw, arm, part] = Scored(cases=cases, hours=round(hours, 2), made=made)
            rows = (
                {"draw": number, "arm": name, "part": of, **dataclasses.asdict(scored)}
                for (number, name, of), scored in sorted(self._scored.items())
            )
            self.path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    def by_arm(self, part: str) -> dict[str, dict[int, Scored]]:
        arms: dict[str, dict[int, Scored]] = {}
        for (draw, arm, of), scored in sorted(self._scored.items()):
            if of == part:
                arms.setdefault(arm, {})[draw] = scored
        return arms

    def made(self) -> list[str]:
        """Every date, revision and machine once."""
        return sorted({scored.made for scored in self._scored.values()})


def table(arms: dict[str, dict[int, Scored]], last: str) -> list[str]:
    """Markdown: means, paired differences to a and to the arm `last`, and the share of the gap that each closes."""
    if "a" not in arms:
        return ["not scored yet"]
    organs = list(next(iter(next(iter(arms["a"].values())).cases.values())))
    lines = [
        f"| arm | draws | hours a draw | mean Dice | mean NSD | Dice − a (95 %) | {last} − Dice (95 %) | "
        + " | ".join(organs)
        + " |",
        "|---|---|---:|---:|---:|---|---|" + "---:|" * len(organs),
    ]
    for arm, draws in arms.items():
        each = list(draws.values())
        dice, nsd = (np.mean([scored.mean(metric) for scored in each]) for metric in (0, 1))
        found = [f"{np.mean([scored.mean(0, organ) for scored in each]):.3f}" for organ in organs]
        against = [gain(arms["a"], draws), gain(draws, arms.get(last, {}))]
        hours = np.mean([scored.hours for scored in each])
        lines.append(
            " | ".join([f"| {arm}", str(len(each)), f"{hours:.2f}", f"{dice:.4f}", f"{nsd:.4f}", *against, *found])
            + " |"
        )
    return [*lines, "", *(f"* {arm} closes {text} of the gap between a and e" for arm, text in closed(arms).items())]


def gain(before: dict[int, Scored], after: dict[int, Scored], samples: int = 2000) -> str:
    """Mean gain in Dice over the draws and cases of both, with its 95 % bootstrap interval."""
    draws = [differences(before[draw], after[draw]) for draw in sorted(before.keys() & after.keys())]
    if not draws:
        return "–"
    generator = np.random.default_rng(0)
    low, high = np.percentile([resampled([draws], generator)[0] for _ in range(samples)], [2.5, 97.5])
    return f"{np.mean([draw.mean() for draw in draws]):+.4f} ({low:+.4f} to {high:+.4f})"


def closed(arms: dict[str, dict[int, Scored]], samples: int = 2000) -> dict[str, str]:
    """Share of the gap between a and e that each arm closes, with its interval, where the gap is there at all."""
    told = {}
    for arm in sorted(arms.keys() - {"a", "e"}) if "e" in arms else ():
        common = sorted(arms[arm].keys() & arms["a"].keys() & arms["e"].keys())
        if not common:
            continue
        gains, gaps = ([differences(arms["a"][draw], arms[of][draw]) for draw in common] for of in (arm, "e"))
        error = np.std(np.concatenate(gaps), ddof=1) / np.sqrt(sum(map(len, gaps)))
        gap = np.mean([draw.mean() for draw in gaps])
        if gap <= 2 * error:
            told[arm] = f"an unknown part (the gap of {gap:.4f} is within two standard errors)"
            continue
        generator = np.random.default_rng(0)
        pairs = [resampled([gains, gaps], generator) for _ in range(samples)]
        low, high = np.percentile([won / of for won, of in pairs], [2.5, 97.5])
        told[arm] = f"{np.mean([draw.mean() for draw in gains]) / gap:.0%} ({low:.0%} to {high:.0%})"
    return told


def differences(before: Scored, after: Scored) -> np.ndarray:
    """What each case's mean Dice over its organs gained."""
    means = [
        {name: np.mean([both[0] for both in organs.values()]) for name, organs in scored.cases.items()}
        for scored in (before, after)
    ]
    return np.array([means[1][name] - means[0][name] for name in sorted(means[0])])


def resampled(quantities: list[list[np.ndarray]], generator: np.random.Generator) -> list[float]:
    """Means of one bootstrap sample of the draws, and of the cases within each: the same ones for every quantity."""
    sizes = [len(draw) for draw in quantities[0]]
    chosen = generator.integers(len(sizes), size=len(sizes))
    cases = [generator.integers(sizes[draw], size=sizes[draw]) for draw in chosen]
    return [
        float(np.mean([quantity[draw][picked].mean() for draw, picked in zip(chosen, cases, strict=True)]))
        for quantity in quantities
    ]
