"""What tells a good pseudo-label from a bad one? Several scores against the hidden real labels of few.py's pool.

The judged label maps are those of few.py's supervised arm `a`, final weights, no test-time augmentation. Scores of an
organ, all between 0 and 1, larger is better:

* `snapshots`: mean Dice with the maps of the training's own weights at 36 and 66 % (what flaresemi uses);
* `views`: mean Dice with the maps of four views of the image: noise, gamma, contrast, blur;
* `mirrored`: mean Dice with the maps of the mirrored images, where training mirrored;
* `entropy`: 1 - mean entropy of the probabilities in the organ;
* `soft Dice`: of the map with the probabilities that it is the largest of;
* `student`: Dice with the map of a second student, of another seed;
* `students' soft Dice`: of the map with the mean probabilities of both students;
* `regressor`: a small network that sees image and label map in the organ's box, trained to tell the Dice of corrupted
  real labels of the labeled cases;
* `all of its own`: mean log odds of the first five.

Per draw and organ: Spearman's rank correlation with the true Dice over the hidden cases. And the error of a predicted
Dice: as it is told, and through the curve (flaresemi.pseudolabels.calibration) that the development cases teach.
What was found of a draw by one group of scores (--scores) is kept in results/scores_that_know.json, and the next start
goes on with what is missing there.

    OMP_NUM_THREADS=1 nice python benchmarks/scores_that_know.py --draws 0 1 2 [--iterations 800] [--share 0.5]
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import running
import torch
from agreement_value import Judged, correlation, draws, groups, median_volumes
from few import Few, yardstick_of
from scipy import ndimage
from torch import Tensor, nn

from flaresemi.compute.device import select_device
from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.inference.predictor import StagePredictor
from flaresemi.inference.sliding_window import most_likely
from flaresemi.io.case_store import CaseStore
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.networks.engine import Engine
from flaresemi.plans import Stage
from flaresemi.pseudolabels.agreement import ABSENT_BELOW, organ_agreement, organ_entropy
from flaresemi.pseudolabels.calibration import Observation, calibrate
from flaresemi.pseudolabels.vitals import spread
from flaresemi.selection import OrganScore
from flaresemi.workspace import ModelFolder, Workspace

#: Edge of the regressor's input, in voxels; and its training: steps, samples a step.
_EDGE, _STEPS, _BATCH = 32, 800, 8


#: Groups of scores: those of the model itself, of a second student beside it, and the regressor's.
OWN, STUDENT, REGRESSOR = GROUPS = ("own", "student", "regressor")


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--yardstick", default="few-mr", choices=("few-mr", "few-ct"))
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=800, help="of every model [800]")
    parser.add_argument("--scores", nargs="+", choices=GROUPS, default=list(GROUPS), help="which [all]")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, evenly spread [1]")
    options = parser.parse_args()
    few = Few(yardstick_of(options.yardstick, options.iterations), options.work)
    bench = running.Bench("scores_that_know", options.work)
    kept_file = bench.results / f"{bench.name}.json"
    found = running.load_json(kept_file)
    for number, group in itertools.product(options.draws, options.scores):
        of_draw = found.setdefault(f"{few.yardstick.name} {number}", {})
        if group not in of_draw:
            few.prepare(number)
            of_draw[group] = judged_draw(few, number, scorer(few, bench, number, group), options.share)
            kept_file.write_text(f"{json.dumps(found)}\n", encoding="utf-8")
        of_it = {key: value for key, value in found.items() if key.startswith(f"{few.yardstick.name} ")}
        bench.report(report(few.yardstick.name, of_it))


def scorer(few: Few, bench: running.Bench, number: int, group: str) -> "Judge":
    """What gives the scores of a group for a case of a draw."""
    few._train(number, "a", 2)
    model = Workspace(few.folder(number) / "few").model("all", Stage.FINE)
    truth = CaseStore(Workspace(few.folder(number) / "all").preprocessed(Stage.FINE))
    labeled = few.draw(number).labeled
    if group == STUDENT:
        return StudentJudge(model, truth, labeled, second_student(few, bench, number))
    if group == REGRESSOR:
        return RegressorJudge(model, truth, labeled, seed=number)
    return OwnJudge(model, truth, labeled)


def second_student(few: Few, bench: running.Bench, number: int) -> ModelFolder:
    """Like few's arm a, from another seed."""
    workspace = few._copy(number, "second student", with_models=False)
    bench.command(
        f"{few.yardstick.name} {number} second student",
        "flaresemi_train", "FINE", "all", "-d", few.folder(number) / "data", "-w", workspace,
        "--iterations", few.yardstick.iterations, "--batch-size", few.yardstick.batch, "--seed", number + 1000,
        "--validations", 0, "--no-validation", "--continue",
    )  # fmt: skip
    return Workspace(workspace).model("all", Stage.FINE)


def judged_draw(few: Few, number: int, judge: "Judge", share: float) -> dict[str, list[dict]]:
    """All organs of the hidden and of the development cases, with the scores of a group."""
    draw = few.draw(number)
    parts = {"hidden": draw.hidden, "development": draw.development}
    return {
        part: [
            {"case": case_id, **organ}
            for case_id in spread(cases, max(round(share * len(cases)), 1))
            for organ in judge(case_id)
        ]
        for part, cases in parts.items()
    }


#: Scores of every organ, by their names; None where the organ is absent.
Scores = dict[str, Sequence[float | None]]


class Judge:
    """Scores the label maps that a model gives cases whose real labels are known."""

    def __init__(self, model: ModelFolder, truth: CaseStore, labeled: Sequence[str]) -> None:
        self.model = model
        self.truth = truth
        self.checkpoint = load_checkpoint(model.final)
        self.names = self.checkpoint.labels.names
        self.own = self.predictor(model.final)
        self.medians = median_volumes(truth, labeled, self.names)

    def predictor(self, path: Path) -> StagePredictor:
        return StagePredictor([load_checkpoint(path)], engine=Engine(select_device("auto"), "fp32", "torch"))

    def __call__(self, case_id: str) -> list[dict]:
        stored = self.truth.open(case_id)
        image, fill = np.asarray(stored.image_czyx, np.float32), np.array(stored.record.channel_minima, np.float32)
        logits = self.own.logits(image, fill)[0]
        saved = most_likely(logits)
        voxel_ml = math.prod(stored.record.grid.spacing_zyx_mm) / 1000
        least = [ABSENT_BELOW * self.medians[name] / voxel_ml for name in self.names]
        found = self.scores(image, fill, saved, torch.softmax(logits, 0).numpy(), least)
        dice = dice_per_organ(saved, np.asarray(stored.label_zyx), len(self.names))
        return [
            {
                "organ": name,
                "dice": dice[i],
                "measures": {key: None if of[i] is None else round(float(of[i]), 5) for key, of in found.items()},
            }
            for i, name in enumerate(self.names)
        ]

    def scores(
        self, image: np.ndarray, fill: np.ndarray, saved: np.ndarray, probabilities: np.ndarray, least: list[float]
    ) -> Scores:
        """Scores of a label map; what counts as present is at least so many voxels, per organ."""
        raise NotImplementedError


class OwnJudge(Judge):
    """By the model itself: its earlier weights, views of the image, its probabilities."""

    def __init__(self, model: ModelFolder, truth: CaseStore, labeled: Sequence[str]) -> None:
        super().__init__(model, truth, labeled)
        self.earlier = [self.predictor(model.snapshot(percent)) for percent in (36, 66)]
        self.axes = self.checkpoint.labels.mirror_axes(self.checkpoint.mirror_axes)

    def scores(
        self, image: np.ndarray, fill: np.ndarray, saved: np.ndarray, probabilities: np.ndarray, least: list[float]
    ) -> Scores:
        organs = len(self.names)
        entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-9))).sum(0) / math.log(organs + 1)
        views = [self._map(self.own, view(image), fill) for view in VIEWS]
        mirrored = [self._mirrored(image, fill, axis) for axis in self.axes]
        found: Scores = {
            "snapshots": organ_agreement(saved, [self._map(each, image, fill) for each in self.earlier], least),
            "views": organ_agreement(saved, views, least),
            "mirrored": organ_agreement(saved, mirrored, least),
            "entropy": [None if each is None else 1 - each for each in organ_entropy(entropy, saved, organs)],
            "soft Dice": soft_dice(saved, probabilities),
        }
        found["all of its own"] = [mean_log_odds(of_organ) for of_organ in zip(*found.values(), strict=True)]
        return found

    def _map(self, predictor: StagePredictor, image: np.ndarray, fill: np.ndarray) -> np.ndarray:
        return most_likely(predictor.logits(image, fill)[0])

    def _mirrored(self, image: np.ndarray, fill: np.ndarray, axis: int) -> np.ndarray:
        labels = np.flip(self._map(self.own, np.flip(image, axis + 1).copy(), fill), axis)
        return np.asarray(self.checkpoint.labels.mirror_permutation)[labels] if axis == 2 else labels


class StudentJudge(Judge):
    """By another student, trained from another seed."""

    def __init__(self, model: ModelFolder, truth: CaseStore, labeled: Sequence[str], second: ModelFolder) -> None:
        super().__init__(model, truth, labeled)
        self.second = self.predictor(second.final)

    def scores(
        self, image: np.ndarray, fill: np.ndarray, saved: np.ndarray, probabilities: np.ndarray, least: list[float]
    ) -> Scores:
        other = torch.softmax(self.second.logits(image, fill)[0], 0).numpy()
        return {
            "student": organ_agreement(saved, [other.argmax(0).astype(saved.dtype)], least),
            "students' soft Dice": soft_dice(saved, (probabilities + other) / 2),
        }


class RegressorJudge(Judge):
    """By a network that has learned the Dice of corrupted real labels."""

    def __init__(self, model: ModelFolder, truth: CaseStore, labeled: Sequence[str], *, seed: int) -> None:
        super().__init__(model, truth, labeled)
        self.regressor = trained_regressor(truth, labeled, len(self.names), seed)

    def scores(
        self, image: np.ndarray, fill: np.ndarray, saved: np.ndarray, probabilities: np.ndarray, least: list[float]
    ) -> Scores:
        return {"regressor": [told(self.regressor, image[0], saved, organ) for organ in range(1, len(self.names) + 1)]}


def soft_dice(saved: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """Expected shared voxels against both volumes; None where the organ is not in the map."""
    found: list[float | None] = []
    for organ in range(1, len(probabilities)):
        mask, of_it = saved == organ, probabilities[organ]
        both = float(mask.sum() + of_it.sum())
        found.append(2 * float(of_it[mask].sum()) / both if mask.any() else None)
    return found


def mean_log_odds(values: Sequence[float | None]) -> float | None:
    known = [min(max(value, 0.01), 0.99) for value in values if value is not None]
    return float(1 / (1 + np.exp(-np.mean([math.log(v / (1 - v)) for v in known])))) if known else None


def _noise(image: np.ndarray) -> np.ndarray:
    return image + np.random.default_rng(0).normal(0, 0.15, image.shape).astype(np.float32)


def _gamma(image: np.ndarray) -> np.ndarray:
    low, extent = image.min(), float(np.ptp(image)) or 1.0
    return ((image - low) / extent) ** np.float32(1.25) * extent + low


def _contrast(image: np.ndarray) -> np.ndarray:
    return image.mean() + (image - image.mean()) * np.float32(0.8)


def _blur(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image, (0, 0.7, 0.7, 0.7))


VIEWS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (_noise, _gamma, _contrast, _blur)


# The regressor.


class Regressor(nn.Module):
    """Image, organ and other organs in a box of `_EDGE` voxels to the log odds of Dice."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv3d(before, after, 3, padding=1),
                nn.InstanceNorm3d(after, affine=True),
                nn.LeakyReLU(0.01),
            ]
            layers += [nn.AvgPool3d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.01), nn.Linear(32, 1))

    def forward(self, boxes: Tensor) -> Tensor:
        return self.head(self.features(boxes).mean((2, 3, 4)))[:, 0]


def trained_regressor(truth: CaseStore, labeled: Sequence[str], organs: int, seed: int) -> Regressor:
    """Learns the Dice of corrupted labels of the labeled cases."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    cases = [truth.open(case_id) for case_id in labeled]
    volumes = [(np.asarray(c.image_czyx[0], np.float32), np.asarray(c.label_zyx)) for c in cases]
    network = Regressor()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=_STEPS)
    for _ in range(_STEPS):
        boxes, dices = [], []
        while len(boxes) < _BATCH:
            image, label = volumes[generator.integers(len(volumes))]
            worse = corrupted(label, organs, generator)
            organ = int(generator.integers(1, organs + 1))
            if not (worse == organ).any():
                continue
            changed = image * generator.uniform(0.8, 1.25) + generator.normal(
                0, generator.uniform(0, 0.15), image.shape
            )
            box = boxed(changed.astype(np.float32), worse, organ)
            for axis in (1, 2, 3):
                if generator.random() < 0.5:
                    box = np.flip(box, axis)
            boxes.append(box.copy())
            dices.append(dice_per_organ(worse, label, organs)[organ - 1])
        target = torch.tensor(dices, dtype=torch.float32)
        loss = nn.functional.smooth_l1_loss(
            torch.sigmoid(network(torch.from_numpy(np.stack(boxes)))), target, beta=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def corrupted(label: np.ndarray, organs: int, generator: np.random.Generator) -> np.ndarray:
    """A label map with borders moved smoothly, organs grown, shrunk and shifted, as networks err; Dice 0.4 to 1."""
    strength = generator.uniform(0, 3.5)
    distances = [np.zeros(label.shape, np.float32)]
    for organ in range(1, organs + 1):
        mask = label == organ
        inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
        smooth = ndimage.gaussian_filter(generator.normal(size=label.shape), generator.uniform(1.5, 5))
        smooth *= strength * generator.uniform(0, 1) / max(smooth.std(), 1e-6)
        shift = generator.normal(0, 0.4 * strength, 3)
        moved = ndimage.shift(inside, shift, order=1, mode="nearest")
        distances.append(moved + smooth + generator.normal(0, 0.25 * strength))
    return np.stack(distances).argmax(0).astype(label.dtype)


def boxed(image: np.ndarray, label: np.ndarray, organ: int) -> np.ndarray:
    """The organ's box and a margin on `_EDGE` voxels: image, organ, other organs."""
    where = np.argwhere(label == organ)
    margin = 5
    low, high = np.maximum(where.min(0) - margin, 0), where.max(0) + 1 + margin
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask = label[part] == organ
    channels = np.stack([image[part], mask, (label[part] > 0) & ~mask]).astype(np.float32)
    resized = nn.functional.interpolate(torch.from_numpy(channels)[None], (_EDGE,) * 3, mode="trilinear")
    return resized[0].numpy()


@torch.no_grad()
def told(network: Regressor, image: np.ndarray, label: np.ndarray, organ: int) -> float | None:
    """The Dice that the regressor expects."""
    if not (label == organ).any():
        return None
    return float(torch.sigmoid(network(torch.from_numpy(boxed(image, label, organ))[None]))[0])


# The report.


def report(name: str, found: dict[str, dict[str, list[dict]]]) -> str:
    hidden, development = (
        [organ for key, groups_of in found.items() for organ in merged(int(key.split()[-1]), groups_of, part)]
        for part in ("hidden", "development")
    )
    lines = [
        f"# {name.replace('_', '-')}: which score knows a good pseudo-label?",
        "",
        f"{len(draws(hidden))} draw(s), {len(hidden)} organs of hidden cases, {len(development)} of development cases, "
        f"true Dice {np.mean([d.dice for d in hidden]):.3f}. Correlation: Spearman's, within draw and organ, mean "
        "(lowest to highest). Error: mean absolute, of the predicted Dice.",
        "",
        "| score | correlation | error as it is | error, calibrated on development cases |",
        "|---|---:|---:|---:|",
    ]
    for measure in dict.fromkeys(name for each in hidden for name in each.measures):
        values = [correlation([d for d in group if measure in d.measures], measure) for group in groups(hidden)]
        known = [value for value in values if not math.isnan(value)]
        if not known:
            continue
        raw = [abs(told - each.dice) for each in hidden if (told := each.measures.get(measure)) is not None]
        learned = calibrated_errors(hidden, development, measure)
        lines.append(
            f"| {measure} | {np.mean(known):.2f} ({min(known):.2f} to {max(known):.2f}) | {np.mean(raw):.4f} | "
            f"{f'{np.mean(learned):.4f}' if learned else '–'} |"
        )
    dices = [[each.dice for each in group] for group in groups(hidden)]
    spread = np.mean([abs(dice - np.median(group)) for group in dices for dice in group])
    lines += ["", f"Whoever told the median true Dice of its draw and organ for every case: {spread:.4f}"]
    return "\n".join(lines)


def merged(draw: int, of_groups: dict[str, dict[str, list[dict]]], part: str) -> list[Judged]:
    """The organs of a draw with the scores of all groups that are known."""
    found: dict[tuple[str, str], Judged] = {}
    for organs in (group[part] for group in of_groups.values()):
        for each in organs:
            key = each["case"], each["organ"]
            before = found[key].measures if key in found else {}
            measures = {**before, **each["measures"]}
            found[key] = Judged(draw=draw, round=1, organ=each["organ"], dice=each["dice"], measures=measures)
    return list(found.values())


def calibrated_errors(hidden: list[Judged], development: list[Judged], measure: str) -> list[float]:
    """Of the curve over this score that each draw's development cases teach."""
    errors: list[float] = []
    for draw in draws(hidden):
        observations = [
            Observation(case_id=str(i), organ=each.organ, score=_score(each, measure), dice=each.dice)
            for i, each in enumerate(e for e in development if e.draw == draw)
        ]
        calibration = calibrate(observations, {})
        for each in (e for e in hidden if e.draw == draw):
            predicted = calibration.predict(each.organ, _score(each, measure)) if calibration else None
            if predicted is not None:
                errors.append(abs(predicted - each.dice))
    return errors


def _score(judged: Judged, measure: str) -> OrganScore:
    return OrganScore(agreement=judged.measures.get(measure), volume_ml=1.0, entropy=None)


if __name__ == "__main__":
    main()
