"""Which cases to label next: chance, uncertainty, distance, or the product of these two.

From four labeled cases a model is trained, and labels and scores the pool as a round does. From what that leaves on
disk, each way chooses K more cases, whose hidden labels are given; a new model is trained from scratch on 4 + K, as
many steps and from the same seed in every arm, and scored on the development cases.

    random     what flaresemi_review suggests: chance, among cases in which every organ was found, of unlike volumes
               (sorted by the volume of all organs together and cut into K equal parts, of which each gives one case).
               That chance aware of the foreground is what has to be beaten was found by nnActive (arXiv 2511.19183) for
               patches; these are whole cases.
    uncertain  what the organs lack to a full score
    unlike     distance to the closest case that is labeled or chosen, the k-center greedy of arXiv 1708.00489, in
               logarithms of the organs' volumes and of the scan's extent and spacing
    both       the product of these two
    none       four labeled cases: where all of them start from

few-mr-coarse is few-mr (four labeled MR crops, 164 hidden) with voxels of 2 mm and the small network that goes with
them, so that a training takes half a minute; few-ct-quick and btcv-4-quick have one stage, half of the features and a
small patch.

    OMP_NUM_THREADS=1 python benchmarks/label_next.py few-mr-coarse --draws 0 1 2 3
    OMP_NUM_THREADS=1 python benchmarks/label_next.py few-ct-quick --draws 0 1 --counts 4
"""

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import running
from few import YARDSTICKS, Few, yardstick_of
from few_scores import Scores, gain

from flaresemi.dataset import load_dataset
from flaresemi.io.case_store import CaseStore
from flaresemi.planning.decisions import usable_cases
from flaresemi.plans import Stage, load_fingerprint
from flaresemi.pseudolabels.selecting import case_volumes_ml
from flaresemi.review.material import Material
from flaresemi.selection import CaseScore
from flaresemi.workspace import Workspace

WAYS = ("random", "uncertain", "unlike", "both")


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8], help="cases to label next [4 8]")
    parser.add_argument("--ways", nargs="+", choices=("none", *WAYS), default=["none", *WAYS])
    options = parser.parse_args()
    start = Start(options)
    scores = Scores(start.few.bench.results / f"label_next_{start.few.yardstick.name}.jsonl")
    bench = running.Bench(f"label_next_{start.few.yardstick.name}", options.work)
    for number, count, way in itertools.product(options.draws, options.counts, options.ways):
        arm = way if way == "none" else f"{way} {count}"
        if not scores.has(number, arm, "development"):
            start.require_time()
            start.label(number)
            start.train_with(number, arm, () if way == "none" else start.choose(number, way, count), scores)
        bench.publish(report(start.few, scores, options.counts))


def add_options(parser: argparse.ArgumentParser) -> None:
    """What names a yardstick, its draws, and how long all of it may take."""
    parser.add_argument("yardstick", choices=tuple(YARDSTICKS))
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--iterations", type=int, help="of every model, instead of the yardstick's")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after so long")


class Start:
    """Draws of a yardstick, each with a model of the few labeled cases that has labeled the pool."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.few = Few(yardstick_of(options.yardstick, options.iterations), options.work)
        self.few.bench.inside = True
        self._last = time.monotonic() + 60 * options.minutes

    def require_time(self) -> None:
        """Ends the program when its time is up; started again, it goes on."""
        if time.monotonic() > self._last:
            raise SystemExit("the time is up: start the same command again for the rest")

    def workspace(self, number: int) -> Path:
        return self.few.folder(number) / "few"

    def train(self, number: int, step: str, fold: str, data: Path, workspace: Path, *more: object) -> None:
        """A training from scratch; the same steps and seed whatever it is trained on."""
        yardstick = self.few.yardstick
        batch = () if yardstick.batch is None else ("--batch-size", yardstick.batch)
        self.few.bench.command(
            f"{number} {step}", "flaresemi_train", "FINE", fold, "-d", data, "-w", workspace,
            "--iterations", yardstick.iterations, *batch, "--seed", number, "--validations", 0, "--loader-workers", 0,
            "--continue", *more,
        )  # fmt: skip

    def label(self, number: int) -> None:
        """Trains on the few, then labels and selects as a round does."""
        data, workspace = self.few.folder(number) / "data", self.workspace(number)
        self.few.prepare(number)
        self.train(number, "start", "all", data, workspace, "--no-validation")
        words = ("-d", data, "-w", workspace, "--fold", "all", "--step", "select")
        self.few.bench.command(f"{number} label", "flaresemi_semi_round", *words)

    def material(self, number: int, workspace: Path | None = None) -> Material:
        """What there is to review."""
        place = Workspace(workspace or self.workspace(number))
        return Material(place, usable_cases(load_dataset(self.few.folder(number) / "data"), place), "all")

    def choose(self, number: int, way: str, count: int) -> tuple[str, ...]:
        """The hidden cases that one of the ways would label next."""
        hidden, material = self.few.draw(number).hidden, self.material(number)
        if way == "random":
            return tuple(each.case_id for each in material.label_next(count, hidden, number))
        scores = material.scores(1)
        doubts = {name: uncertainty(scores[name]) if way in ("uncertain", "both") else 1.0 for name in hidden}
        if way == "uncertain":
            return tuple(sorted(hidden, key=lambda name: -doubts[name])[:count])
        known, others = self.features(number, scores, hidden)
        return farthest(doubts, dict(zip(hidden, others, strict=True)), known, count)

    def features(
        self, number: int, scores: Mapping[str, CaseScore], hidden: Sequence[str]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of the labeled cases, and of the hidden ones."""
        place = Workspace(self.workspace(number))
        images = CaseStore(place.preprocessed(Stage.FINE))
        fingerprint = load_fingerprint(place.fingerprint)
        known = [
            case_features(case_volumes_ml(case), case.shape_zyx, case.spacing_zyx_mm) for case in fingerprint.cases
        ]
        others = []
        for name in hidden:
            grid, volumes = images.record(name).grid, [organ.volume_ml for organ in scores[name].organs.values()]
            others.append(case_features(volumes, grid.canonical_shape_zyx, grid.canonical_spacing_zyx_mm))
        return known, others

    def train_with(self, number: int, arm: str, chosen: Collection[str], scores: Scores) -> None:
        """Trains with the labels of these cases, too, and scores that on the development cases."""
        folder, draw = self.few.folder(number), self.few.draw(number)
        self.few.prepare_ceiling(number)
        workspace = folder / "next" / arm.replace(" ", "_")
        if not (workspace / "splits.json").exists():
            workspace.mkdir(parents=True, exist_ok=True)
            for path in (folder / "all").iterdir():
                if path.is_file() and path.name != "splits.json":
                    shutil.copyfile(path, workspace / path.name)
            (workspace / "preprocessed").symlink_to((folder / "all" / "preprocessed").resolve())
            splits = running.load_json(folder / "all" / "splits.json")
            splits["folds"] = [{"train": sorted((*draw.labeled, *chosen)), "validation": draw.development}]
            (workspace / "splits.json").write_text(json.dumps(splits))
        self.train(number, arm, "0", folder / "truth", workspace)
        summary = Workspace(workspace).root / "models" / "fold_0" / "FINE" / "validation" / "summary.json"
        made = f"{running.when_and_what()}; {running.machine()}"
        scores.add(number, arm, "development", summary, hours=0.0, made=made)


def uncertainty(score: CaseScore) -> float:
    """What the organs of a case lack to a full score, on average, 0 to 1; 1 where nothing is known of any."""
    found = [1 - value for organ in score.organs.values() if (value := organ.trust) is not None]
    return float(np.clip(np.mean(found), 0, 1)) if found else 1.0


def case_features(volumes_ml: Sequence[float], shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Logarithms of volumes (of at least 0.1 ml), of the scan's extent and of its spacing."""
    extent = [size * each for size, each in zip(shape, spacing_mm, strict=True)]
    return np.log([*(max(each, 0.1) for each in volumes_ml), *extent, *spacing_mm])


def farthest(
    doubts: Mapping[str, float], features: Mapping[str, np.ndarray], labeled: Sequence[np.ndarray], count: int
) -> tuple[str, ...]:
    """One after the other, the largest product of uncertainty and distance to whatever is labeled or chosen."""
    names = sorted(doubts)
    table, known = np.array([features[name] for name in names]), np.array(labeled)
    scale = np.concatenate([table, known]).std(0)
    scale[scale == 0] = 1.0
    table, known = table / scale, known / scale
    doubt = np.array([doubts[name] for name in names])
    distance = np.sqrt(((table[:, None] - known[None]) ** 2).mean(-1)).min(1)
    chosen: list[str] = []
    for _ in range(count):
        left = [name not in chosen for name in names]
        best = int(np.where(left, doubt * (distance + 1e-6), -1.0).argmax())
        chosen.append(names[best])
        distance = np.minimum(distance, np.sqrt(((table - table[best]) ** 2).mean(-1)))
    return tuple(chosen)


def report(few: Few, scores: Scores, counts: Sequence[int]) -> list[str]:
    """Markdown: Dice of every arm, and its paired difference to chance."""
    arms = scores.by_arm("development")
    lines = [
        f"# What to label next: {few.yardstick.name.replace('_', '-')}, {few.yardstick.iterations} iterations",
        "",
        "| way | K | draws | mean Dice | by draw | Dice − none (95 %) | Dice − random (95 %) |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    together: dict[str, dict] = {way: {} for way in WAYS}
    for count, way in itertools.product(counts, ("none", *WAYS)):
        draws = arms.get(way if way == "none" else f"{way} {count}", {})
        if draws and not (way == "none" and count != counts[0]):
            against = ["–", "–"] if way == "none" else [gain(arms.get("none", {}), draws), "–"]
            if way not in ("none", "random"):
                against[1] = gain(arms.get(f"random {count}", {}), draws)
            means = {number: scored.mean(0) for number, scored in sorted(draws.items())}
            told = ", ".join(f"{mean:.4f}" for mean in means.values())
            mean = np.mean([*means.values()])
            shown = 0 if way == "none" else count
            lines.append(f"| {way} | {shown} | {len(means)} | {mean:.4f} | {told} | {' | '.join(against)} |")
        if way in together:
            together[way].update({(count, number): scored for number, scored in draws.items()})
    lines += ["", "Both K together, paired by draw, K and case:", ""]
    for way in WAYS[1:]:
        lines.append(f"* {way} − random: {gain(together['random'], together[way])}")
    return [*lines, "", "Made:", "", *(f"* {made}" for made in scores.made())]


if __name__ == "__main__":
    main()
