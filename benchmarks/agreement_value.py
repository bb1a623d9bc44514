"""What a score of a pseudo-label is worth: against the hidden real labels of the pool of benchmarks/few.py.

For every draw, round and organ: rank correlation of agreement, predicted Dice, entropy and volume with the true Dice;
the mean true Dice of what is kept when the least reliable part is left out (risk and coverage); and the error of the
predicted Dice, which is learned on the development cases. Run benchmarks/few.py first, on the same machine; what was
found about a draw is kept in results/agreement_few_*.json. Result: results/agreement_few_*.md.

    python benchmarks/agreement_value.py few-mr --draws 0 1 2
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import running
from few import Few, add_options, yardstick_of
from scipy.stats import spearmanr

from flaresemi.dataset import load_dataset
from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.io.case_store import CaseStore, LabelStore
from flaresemi.plans import Stage, load_plans
from flaresemi.pseudolabels.calibration import Calibration, Observation, calibrate
from flaresemi.selection import OrganScore, load_scores
from flaresemi.workspace import Workspace

COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An organ of a pseudo-label whose real label is known.

    Attributes:
        measures: What might tell a good label from a bad one; larger is better; None where it is not known.
    """

    draw: int
    round: int
    organ: str
    dice: float
    measures: dict[str, float | None]


def measures(score: OrganScore, predicted: float | None, median_ml: float) -> dict[str, float | None]:
    """By name, to five digits."""
    volume = abs(math.log(max(score.volume_ml, 0.01 * median_ml) / median_ml))
    exact = {
        "agreement": score.agreement,
        "predicted Dice": predicted,
        "entropy": None if score.entropy is None else -score.entropy,
        "volume": -volume,
    }
    return {name: None if value is None else round(value, 5) for name, value in exact.items()}


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("--arm", default="d", help="the arm of few.py whose rounds are judged [d]")
    options = parser.parse_args()
    few = Few(yardstick_of(options.yardstick, options.iterations, options.preset), options.work)
    bench = running.Bench(f"agreement_{few.yardstick.name}", options.work)
    kept_file = bench.results / f"{bench.name}.json"
    found = json.loads(kept_file.read_text(encoding="utf-8")) if kept_file.exists() else []
    judged = [Judged(**fields) for fields in found]
    rounds = range(1, options.rounds + 1)
    for draw, number in itertools.product(options.draws, rounds):
        if not any((each.draw, each.round) == (draw, number) for each in judged):
            judged += judge(few, draw, options.arm, number)
            rows = ",\n".join(json.dumps(dataclasses.asdict(each)) for each in judged)
            kept_file.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    lines = [f"# {few.yardstick.name.replace('_', '-')}: scores of pseudo-labels against hidden real labels"]
    for number in rounds:
        of_round = [each for each in judged if each.round == number]
        lines += ["", f"## round {number}, {len(draws(of_round))} draw(s)", "", *tables(of_round)]
    bench.report("\n".join(lines))


def judge(few: Few, number: int, arm: str, round_number: int) -> list[Judged]:
    """The organs of all hidden cases of a draw."""
    folder, draw = few.folder(number), few.draw(number)
    workspace = Workspace(folder / arm)
    plans = load_plans(workspace.plans)
    truth = CaseStore(Workspace(folder / "all").preprocessed(Stage.FINE))
    round_folder = workspace.round("all", round_number)
    labels = LabelStore(round_folder.labels(Stage.FINE), CaseStore(workspace.preprocessed(Stage.FINE)))
    z_range = [label.z_range for label in load_dataset(folder / "data").labels.labels]
    medians = median_volumes(truth, draw.labeled, plans.labels.names)
    scores = {score.case_id: score for score in load_scores(round_folder.scores)}
    calibration = learned(few, number, workspace, round_number, medians)
    judged = []
    for case_id in draw.hidden:
        real, drawn = (np.asarray(store.open(case_id).label_zyx) for store in (truth, labels))
        for organ, name in enumerate(plans.labels.names, start=1):
            score = scores[case_id].organs[name]
            predicted = calibration.predict(name, score) if calibration else None
            judged.append(
                Judged(
                    draw=number,
                    round=round_number,
                    organ=name,
                    dice=dice(real, drawn, organ, z_range[organ - 1]),
                    measures=measures(score, predicted, medians[name]),
                )
            )
    return judged


def dice(real: np.ndarray, drawn: np.ndarray, organ: int, z_range: bool) -> float:
    """Dice of one organ; of a tube, in the reference's slices only."""
    if z_range and (real == organ).any():
        slices = np.flatnonzero((real == organ).any(axis=(1, 2)))
        real, drawn = (array[slices[0] : slices[-1] + 1] for array in (real, drawn))
    return dice_per_organ((drawn == organ).astype(np.uint8), (real == organ).astype(np.uint8), 1)[0]


def median_volumes(truth: CaseStore, cases: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    records = [truth.open(case_id).record for case_id in cases]
    return {
        name: float(
            np.median([record.voxels_per_label[i] * math.prod(record.grid.spacing_zyx_mm) / 1000 for record in records])
        )
        for i, name in enumerate(names)
    }


def learned(
    few: Few, number: int, workspace: Workspace, round_number: int, medians: dict[str, float]
) -> Calibration | None:
    """What the development cases teach about the scores of the models that label in this round."""
    from flaresemi.pseudolabels.labeling import Labeler
    from flaresemi.pseudolabels.teachers import load_teachers

    plans = load_plans(workspace.plans)
    before = workspace.round("all", round_number - 1) if round_number > 1 else None
    teacher = before.model(Stage.FINE) if before else workspace.model("all", Stage.FINE)
    truth = CaseStore(Workspace(few.folder(number) / "all").preprocessed(Stage.FINE))
    labeler = Labeler(load_teachers(teacher, None, plans), truth, truth, [medians[name] for name in plans.labels.names])
    z_range = [label.z_range for label in load_dataset(few.folder(number) / "data").labels.labels]
    observations = []
    for case_id in few.draw(number).development:
        labeled, real = labeler.label(case_id), np.asarray(truth.open(case_id).label_zyx)
        for organ, name in enumerate(plans.labels.names, start=1):
            observations.append(
                Observation(
                    case_id=case_id,
                    organ=name,
                    score=labeled.score.organs[name],
                    dice=dice(real, labeled.label_zyx, organ, z_range[organ - 1]),
                )
            )
    return calibrate(observations, medians)


def tables(judged: list[Judged]) -> list[str]:
    organs = list(dict.fromkeys(each.organ for each in judged))
    names = list(judged[0].measures)
    lines = [
        "Spearman's rank correlation with the true Dice, mean over draws:",
        "",
        "| organ | cases | true Dice | " + " | ".join(names) + " |",
        "|---|---:|---:|" + "---:|" * len(names),
    ]
    means: dict[str, list[float]] = {name: [] for name in names}
    for organ in organs:
        cells = []
        for name in names:
            values = [correlation([e for e in judged if e.organ == organ and e.draw == d], name) for d in draws(judged)]
            known = [value for value in values if not math.isnan(value)]
            means[name] += known
            cells.append(f"{np.mean(known):.2f}" if known else "–")
        of_organ = [each.dice for each in judged if each.organ == organ]
        lines.append(f"| {organ} | {len(of_organ)} | {np.mean(of_organ):.3f} | " + " | ".join(cells) + " |")
    lines.append(
        "| **mean** | | | " + " | ".join(f"**{np.mean(means[n]):.2f}**" if means[n] else "–" for n in names) + " |"
    )
    lines += [
        "",
        "Mean true Dice of what is kept, by the share that is kept (within each draw and organ, best first):",
        "",
        "| | " + " | ".join(f"{coverage:.0%}" for coverage in COVERAGES) + " |",
        "|---|" + "---:|" * len(COVERAGES),
    ]
    for name in (*names, "true Dice"):
        lines.append(f"| {name} | " + " | ".join(f"{kept(judged, name, c):.4f}" for c in COVERAGES) + " |")
    for name in ("predicted Dice", "agreement"):
        errors = [abs(told - each.dice) for each in judged if (told := each.measures[name]) is not None]
        if errors:
            lines += ["", f"Mean absolute error of {name} as the Dice: {np.mean(errors):.4f} over {len(errors)} organs"]
    lines += ["", f"Of the median true Dice of each draw and organ, told for all of its cases: {spread(judged):.4f}"]
    return lines


def draws(judged: list[Judged]) -> list[int]:
    return sorted({each.draw for each in judged})


def correlation(judged: list[Judged], name: str) -> float:
    pairs = [(each.measures[name], each.dice) for each in judged if each.measures[name] is not None]
    if len(pairs) < 5 or len({pair[0] for pair in pairs}) < 2 or len({pair[1] for pair in pairs}) < 2:
        return math.nan
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def spread(judged: list[Judged]) -> float:
    """Mean absolute distance of the true Dice from its median in each draw and organ."""
    dices = [[each.dice for each in group] for group in groups(judged)]
    return float(np.mean([abs(dice - np.median(group)) for group in dices for dice in group]))


def kept(judged: list[Judged], name: str, coverage: float) -> float:
    """Mean true Dice of the best part of each organ in each draw by one measure."""

    def rank(each: Judged) -> tuple[float, float]:
        measure = each.dice if name == "true Dice" else each.measures[name]
        return (-math.inf if measure is None else measure), each.dice

    means = []
    for group in groups(judged):
        best = sorted(group, key=rank, reverse=True)[: max(round(coverage * len(group)), 1)]
        means.append(np.mean([each.dice for each in best]))
    return float(np.mean(means))


def groups(judged: list[Judged]) -> list[list[Judged]]:
    """By draw and organ."""
    found: dict[tuple[int, str], list[Judged]] = {}
    for each in judged:
        found.setdefault((each.draw, each.organ), []).append(each)
    return list(found.values())


if __name__ == "__main__":
    main()
