"""What should the Dice to expect of a pseudo-label be learned from? Curves over several scores, compared.

The organs whose true Dice benchmarks/agreement_value.py found (results/agreement_few_*.json) are dealt into cases to
learn on and cases to tell, many times. Told: rank correlation with the true Dice within an organ, and the mean absolute
error, both means over draws, organs and deals. Contact with the region's faces is not in those files. No training; half
a minute. Result: results/calibration.md.

    python benchmarks/calibration.py
"""

import dataclasses
import itertools
import json

import numpy as np
import running
from scipy.stats import spearmanr

from flaresemi.pseudolabels.calibration import ORGAN_RIDGE, SLOPE_RIDGE

#: Cases to learn on, as many as there are development cases; how often they are dealt.
YARDSTICKS = {"few_ct": (10, 60), "few_mr": (40, 20)}
FEATURES = ((), ("agreement",), ("agreement", "entropy"), ("agreement", "volume"), ("agreement", "entropy", "volume"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What a curve is fitted over, and how it is pulled toward none (see flaresemi.pseudolabels.calibration)."""

    features: tuple[str, ...]
    slope_ridge: float = SLOPE_RIDGE
    organ_ridge: float = ORGAN_RIDGE

    def told(self) -> str:
        return f"{' + '.join(self.features) or 'organ alone'}; {self.slope_ridge:g}, {self.organ_ridge:g}"


#: By draw and organ: the features of the cases, and their true Dice.
Judged = dict[int, dict[str, tuple[dict[str, np.ndarray], np.ndarray]]]


def main() -> None:
    options = running.parser(__doc__ or "").parse_args()
    bench = running.Bench("calibration", options.work)
    curves = [Curve(features=features) for features in FEATURES]
    curves += [Curve(features=FEATURES[-1], organ_ridge=4.0)]
    curves += [
        Curve(features=("agreement",), slope_ridge=slope, organ_ridge=organ)
        for slope, organ in itertools.product((0.1, 1.0, 4.0), (0.3, 1.0, 4.0))
        if (slope, organ) != (SLOPE_RIDGE, ORGAN_RIDGE)
    ]
    sets = {
        f"{name.replace('_', '-')} round {number}": (load(name, number), *deal)
        for name, deal in YARDSTICKS.items()
        for number in (1, 2)
    }
    lines = [
        "# What the Dice to expect is learned from: rank correlation / mean absolute error",
        "",
        f"{running.when_and_what()}. After the features: strength of the pull of slopes and of organs' offsets.",
        "",
        "| curve over | " + " | ".join(sets) + " |",
        "|---|" + "---:|" * len(sets),
    ]
    for curve in curves:
        cells = ["{:.2f} / {:.4f}".format(*judge(curve, *each)) for each in sets.values()]
        lines.append(f"| {curve.told()} | " + " | ".join(cells) + " |")
    bench.report("\n".join(lines))


def load(name: str, round_number: int) -> Judged:
    """The organs of one round that are there."""
    rows = json.loads((running.RESULTS / f"agreement_{name}.json").read_text(encoding="utf-8"))
    found: dict[int, dict[str, list[dict]]] = {}
    for row in rows:
        if row["round"] == round_number and row["measures"]["agreement"] is not None:
            found.setdefault(row["draw"], {}).setdefault(row["organ"], []).append(row)

    def columns(rows: list[dict]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        features = {key: np.array([row["measures"][key] for row in rows]) for key in scale}
        features["agreement"] = logit(features["agreement"])
        return {key: values / scale[key] for key, values in features.items()}, np.array([row["dice"] for row in rows])

    present = [row for organs in found.values() for rows in organs.values() for row in rows]
    # The logit of agreement has a spread of about 1 already.
    scale = {key: np.std([row["measures"][key] for row in present]) for key in ("entropy", "volume")} | {"agreement": 1}
    return {draw: {organ: columns(rows) for organ, rows in organs.items()} for draw, organs in found.items()}


def judge(curve: Curve, judged: Judged, learn_on: int, deals: int) -> tuple[float, float]:
    """Rank correlation and mean absolute error on the cases that were not learned on."""
    generator = np.random.default_rng(0)
    correlations, errors = [], []
    for organs in judged.values():
        most = max(len(dice) for _, dice in organs.values())
        for _ in range(deals):
            order = generator.permutation(most)
            columns, targets = zip(*(rows(curve, organs, organ, order[:learn_on]) for organ in organs), strict=True)
            matrix, target = np.concatenate(columns), logit(np.concatenate(targets))
            slopes = [curve.slope_ridge] * len(curve.features)
            penalty = np.diag([0.0, *slopes, *[curve.organ_ridge] * len(organs)])
            solution = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ target)
            if curve.features and solution[1] < 0:  # of agreement; as flaresemi.pseudolabels.calibration does
                matrix[:, 1] = 0.0
                solution = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ target)
            for organ in organs:
                unseen, dice = rows(curve, organs, organ, order[learn_on:])
                told = 1 / (1 + np.exp(-unseen @ solution))
                errors.append(np.abs(told - dice).mean())
                if np.ptp(told) > 0:
                    correlations.append(spearmanr(told, dice).statistic)
    return float(np.mean(correlations or 0.0)), float(np.mean(errors))


def rows(curve: Curve, organs: dict, organ: str, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of some cases of an organ: intercept, features and which organ it is; true Dice."""
    features, dice = organs[organ]
    chosen = cases[cases < len(dice)]
    which = [np.full(len(chosen), float(name == organ)) for name in organs]
    columns = [np.ones(len(chosen)), *(features[name][chosen] for name in curve.features), *which]
    return np.stack(columns, axis=1), dice[chosen]


def logit(share: np.ndarray) -> np.ndarray:
    clipped = np.clip(share, 0.01, 0.99)
    return np.log(clipped / (1 - clipped))


if __name__ == "__main__":
    main()
