"""What self-training gains from few labels: supervised, naive, the seed's rule, the default, and the ceiling.

`few-ct`: openkbp with 4 labeled cases and a pool of 100; `few-mr`: hippocampus with 4 and 164. Every draw has other
labeled cases. The arms of a draw share plans, network, and the iterations of each model:

    a       supervised on the few                       the start of b, c, d
    a-long  the same, as many iterations as d has in all
    b       two rounds on all pseudo-labels, naively
    c       two rounds with --preset seed
    d       two rounds with the defaults
    e       supervised on every label of the training cases: the ceiling

Choices are made on the development cases (part of neither the labeled cases nor the pool). The test cases are scored
with --test. Every step is run once and a stopped one goes on: start the same command again. Results: results/few_*.md.

    python benchmarks/few.py ct --draws 0 1 2 --arms a a-long b c d e [--test]
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import running

#: Options of flaresemi_semi_round by arm; all run two rounds on fold 'all'.
ROUNDS: dict[str, tuple[str, ...]] = {
    "b": ("--select", "case", "--best-share", "1", "--case-threshold", "0", "--pseudo-augmentation", "standard"),
    "c": ("--preset", "seed"),
    "d": (),
}

#: One change each to the defaults, tried on the development cases.
VARIANTS: dict[str, tuple[str, ...]] = {
    "standard augmentation": ("--pseudo-augmentation", "standard"),
    "fine-tuned": ("--fine-tune", "0.1"),
    "warm start, a quarter": ("--start", "previous", "--length", "0.25"),
    "organ threshold 0.7": ("--organ-threshold", "0.7"),
    "organ threshold 0.9": ("--organ-threshold", "0.9"),
    "three quarters pseudo": ("--pseudo-share", "0.75"),
    "case selection": ("--select", "case"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """One of the two data sets with few labels.

    Attributes:
        dataset: Its folder.
        z_range: Organs that are scored in the reference's slices only.
        test: Every how manieth labeled case is a test case; 0: the dataset has its own.
        labeled: Cases that keep their labels.
        development: Labeled cases outside the pool.
        iterations: Of every model.
    """

    name: str
    dataset: str
    z_range: tuple[str, ...]
    test: int
    labeled: int
    development: int
    iterations: int
    batch: int


YARDSTICKS = {
    "ct": Yardstick(
        name="few_ct", dataset="openkbp", z_range=("spinal cord", "esophagus"), test=0, labeled=4, development=10,
        iterations=1200, batch=2,
    ),
    "mr": Yardstick(
        name="few_mr", dataset="hippocampus", z_range=(), test=5, labeled=4, development=40, iterations=800, batch=2
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Which case has which part."""

    labeled: tuple[str, ...]
    development: tuple[str, ...]
    hidden: tuple[str, ...]


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("yardstick", choices=tuple(YARDSTICKS))
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["a", "b", "c", "d", "e", "a-long"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--iterations", type=int, help="of every model, instead of the yardstick's")
    parser.add_argument("--test", action="store_true", help="score the test cases too")
    options = parser.parse_args()
    yardstick = YARDSTICKS[options.yardstick]
    if options.iterations:
        yardstick = dataclasses.replace(yardstick, iterations=options.iterations)
    few = Few(yardstick, options.work)
    for number in options.draws:
        few.prepare(number)
        for arm in options.arms:
            few.run(number, arm, options.rounds, test=options.test)
            few.report(options.draws, test=options.test)


class Few:
    """One yardstick: folder of work and steps."""

    def __init__(self, yardstick: Yardstick, work: Path) -> None:
        self.yardstick = yardstick
        self.bench = running.Bench(yardstick.name, work)
        self.source = running.need(running.SHARED / yardstick.dataset)
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (self.source / "labelsTr").iterdir())
        self.test_cases = tuple(cases[:: yardstick.test]) if yardstick.test else ()
        self.cases = tuple(case for case in cases if case not in set(self.test_cases))

    def draw(self, number: int) -> Draw:
        """Deals the cases by a hash of draw and name, so that no library's generator matters."""
        dealt = sorted(self.cases, key=lambda case: hashlib.sha256(f"{number}:{case}".encode()).digest())
        few, all_development = self.yardstick.labeled, self.yardstick.labeled + self.yardstick.development
        return Draw(
            labeled=tuple(sorted(dealt[:few])),
            development=tuple(sorted(dealt[few:all_development])),
            hidden=tuple(sorted(dealt[all_development:])),
        )

    def folder(self, number: int) -> Path:
        return self.bench.work / f"draw_{number}"

    def prepare(self, number: int) -> None:
        """Links the data sets of a draw, plans it, and prepares it once for all arms."""
        folder, draw = self.folder(number), self.draw(number)
        data, truth = folder / "data", folder / "truth"
        for case in draw.labeled:
            self._link(case, data, "Tr")
        for case in draw.hidden:
            self._link(case, data, "Un")
        for case in (*draw.labeled, *draw.hidden, *draw.development):
            self._link(case, truth, "Tr")
        for case in draw.development:
            self._link(case, folder / "development", "Tr")
        if self.test_cases:
            for case in self.test_cases:
                self._link(case, folder / "test", "Tr")
        else:
            for group in ("images", "labels"):
                for path in (self.source / f"{group}Ts").iterdir():
                    running.link_or_copy(path, folder / "test" / f"{group}Tr" / path.name)
        unlabeled = self.source / "imagesUn"
        for path in unlabeled.iterdir() if unlabeled.exists() else ():
            running.link_or_copy(path, data / "imagesUn" / path.name)
        description = json.loads((self.source / "dataset.json").read_text(encoding="utf-8"))
        description["z_range"] = self.yardstick.z_range
        for place in (data, truth):
            (place / "dataset.json").write_text(json.dumps(description))
        plan = ("--preset", "small", "--stages", "one")
        self.bench.command(f"{number} plan", "flaresemi_plan_and_preprocess", "-d", data, "-w", folder / "few", *plan)
        # The ceiling: the plans of the few, and every label of the training cases in 'fold 0'.
        workspace = folder / "all"
        if not workspace.exists():
            workspace.mkdir()
            for name in ("plans.json", "fingerprint.json"):
                shutil.copyfile(folder / "few" / name, workspace / name)
            fold = {"train": sorted((*draw.labeled, *draw.hidden)), "validation": draw.development}
            everything = sorted((*draw.labeled, *draw.hidden, *draw.development))
            splits = {"schema_version": 1, "seed": number, "case_ids": everything, "folds": [fold]}
            (workspace / "splits.json").write_text(json.dumps(splits))
        self.bench.command(
            f"{number} plan e", "flaresemi_plan_and_preprocess", "-d", truth, "-w", workspace, "--keep-plans"
        )

    def _link(self, case: str, target: Path, group: str) -> None:
        image = f"{case}_0000.nii.gz"
        running.link_or_copy(self.source / "imagesTr" / image, target / f"images{group}" / image)
        if group == "Tr":
            label = f"{case}.nii.gz"
            running.link_or_copy(self.source / "labelsTr" / label, target / "labelsTr" / label)

    def run(self, number: int, arm: str, rounds: int, *, test: bool) -> None:
        """Trains an arm of a draw, and scores it."""
        folder = self.folder(number)
        data, few = folder / "data", folder / "few"
        length = self.yardstick.iterations * (1 + rounds if arm == "a-long" else 1)
        train = ("--iterations", length, "--batch-size", self.yardstick.batch, "--seed", number, "--continue")
        train = (*train, "--validations", 0, "--no-validation")
        if arm == "e":
            place = ("-d", folder / "truth", "-w", folder / "all")
            self.bench.command(f"{number} e", "flaresemi_train", "FINE", "0", *place, *train)
            self._score(number, arm, folder / "all" / "models" / "fold_0", test=test)
        elif arm in ("a", "a-long"):
            workspace = few if arm == "a" else self._copy(number, arm, with_models=False)
            self.bench.command(f"{number} {arm}", "flaresemi_train", "FINE", "all", "-d", data, "-w", workspace, *train)
            self._score(number, arm, workspace / "models" / "fold_all", test=test)
        else:
            words = ROUNDS[arm] if arm in ROUNDS else VARIANTS[arm]
            workspace = self._copy(number, arm, with_models=True)
            for round_number in range(1, rounds + 1):
                self.bench.command(
                    f"{number} {arm} round {round_number}", "flaresemi_semi_round", "-d", data, "-w", workspace,
                    "--fold", "all", "--rounds", round_number, *words,
                )  # fmt: skip
                models = workspace / "rounds" / "fold_all" / f"round_{round_number}" / "models" / "fold_all"
                self._score(number, f"{arm} {round_number}", models, test=test)

    def _copy(self, number: int, arm: str, *, with_models: bool) -> Path:
        """A workspace for an arm: what was planned and prepared is shared."""
        few, workspace = self.folder(number) / "few", self.folder(number) / arm.replace(" ", "_").replace(",", "")
        if not (workspace / "splits.json").exists():
            workspace.mkdir(exist_ok=True)
            for path in few.iterdir():
                if path.is_file() and path.name != "splits.json":
                    shutil.copyfile(path, workspace / path.name)
            (workspace / "preprocessed").symlink_to(few / "preprocessed")
            if with_models:
                (workspace / "models").symlink_to(few / "models")
            shutil.copyfile(few / "splits.json", workspace / "splits.json")
        return workspace

    def _score(self, number: int, arm: str, models: Path, *, test: bool) -> None:
        folder = self.folder(number)
        for part in ("development", "test") if test else ("development",):
            predictions, summary = folder / "predictions" / f"{part} {arm}", self._summary(number, arm, part)
            self.bench.command(
                f"{number} {arm} predict {part}", "flaresemi_predict", "-i", folder / part / "imagesTr",
                "-o", predictions, "-m", models, "--continue",
            )  # fmt: skip
            self.bench.command(
                f"{number} {arm} evaluate {part}", "flaresemi_evaluate", "-p", predictions,
                "-r", folder / part / "labelsTr", "-o", summary, "-d", folder / "data",
            )  # fmt: skip

    def _summary(self, number: int, arm: str, part: str) -> Path:
        return self.folder(number) / f"{part} {arm}.json"

    def report(self, draws: list[int], *, test: bool) -> None:
        """Writes the tables of what there is."""
        yardstick = self.yardstick
        title = f"{yardstick.name.replace('_', '-')}: {yardstick.labeled} labeled cases"
        lines = [f"# {title}, {yardstick.iterations} iterations of batch {yardstick.batch} per model"]
        for part in ("test", "development") if test else ("development",):
            lines += ["", f"## {part} cases", "", *self._table(draws, part)]
        self.bench.report("\n".join(lines))

    def _table(self, draws: list[int], part: str) -> list[str]:
        scores: dict[str, dict[int, dict]] = {}
        for number in draws:
            for path in sorted(self.folder(number).glob(f"{part} *.json")):
                arm = path.stem.removeprefix(f"{part} ")
                scores.setdefault(arm, {})[number] = json.loads(path.read_text(encoding="utf-8"))
        if "a" not in scores:
            return ["not scored yet"]
        organs = [organ["name"] for organ in next(iter(scores["a"].values()))["organs"]]
        lines = [
            "| arm | draws | mean Dice | mean NSD | Dice − a (95 %) | " + " | ".join(organs) + " |",
            "|---|---|---:|---:|---:|" + "---:|" * len(organs),
        ]
        for arm, found in scores.items():
            per_organ = [np.mean([_organ(summary, name) for summary in found.values()]) for name in organs]
            dice, nsd = (np.mean([summary[key] for summary in found.values()]) for key in ("mean_dice", "mean_nsd"))
            common = sorted(found.keys() & scores["a"].keys())
            gain = bootstrap([case_differences(scores["a"][number], found[number]) for number in common])
            lines.append(
                f"| {arm} | {len(found)} | {dice:.4f} | {nsd:.4f} | {gain} | "
                + " | ".join(f"{value:.3f}" for value in per_organ)
                + " |"
            )
        gaps = closed_gaps(scores)
        return [*lines, "", *(f"* {arm} closes {text} of the gap between a and e" for arm, text in gaps.items())]


def _organ(summary: dict, name: str) -> float:
    return next(organ["dice"]["mean"] for organ in summary["organs"] if organ["name"] == name)


def case_means(summary: dict) -> dict[str, float]:
    """Mean Dice over the organs, by case."""
    return {
        case["case_id"]: float(np.mean([organ["dice"] for organ in case["organs"].values()]))
        for case in summary["cases"]
    }


def case_differences(before: dict, after: dict) -> np.ndarray:
    """What each case's mean Dice gained."""
    first, second = case_means(before), case_means(after)
    return np.array([second[case] - first[case] for case in sorted(first)])


def resampled(differences: list[np.ndarray], generator: np.random.Generator) -> float:
    """Mean of one bootstrap sample: of the draws, and of the cases within each."""
    chosen = generator.integers(len(differences), size=len(differences))
    return float(np.mean([generator.choice(differences[index], len(differences[index])).mean() for index in chosen]))


def bootstrap(differences: list[np.ndarray], samples: int = 2000) -> str:
    """Mean over draws and cases with its 95 % interval."""
    generator = np.random.default_rng(0)
    low, high = np.percentile([resampled(differences, generator) for _ in range(samples)], [2.5, 97.5])
    return f"{np.mean([draw.mean() for draw in differences]):+.4f} ({low:+.4f} to {high:+.4f})"


def closed_gaps(scores: dict[str, dict[int, dict]], samples: int = 2000) -> dict[str, str]:
    """Share of the gap between a and e that each arm closes, with its interval, where the gap is there at all."""
    told = {}
    for arm in scores.keys() - {"a", "e"} if "e" in scores else ():
        common = sorted(scores[arm].keys() & scores["a"].keys() & scores["e"].keys())
        gains = [case_differences(scores["a"][number], scores[arm][number]) for number in common]
        gaps = [case_differences(scores["a"][number], scores["e"][number]) for number in common]
        if not common:
            continue
        error = np.std(np.concatenate(gaps), ddof=1) / np.sqrt(sum(map(len, gaps)))
        gap = np.mean([draw.mean() for draw in gaps])
        if gap <= 2 * error:
            told[arm] = f"an unknown part (the gap of {gap:.4f} is within two standard errors)"
            continue
        generator = np.random.default_rng(0)
        shares = []
        for _ in range(samples):  # the same draws and cases for both
            chosen = generator.integers(len(common), size=len(common))
            cases = [generator.integers(len(gaps[index]), size=len(gaps[index])) for index in chosen]
            over = [np.mean([of[i][c].mean() for i, c in zip(chosen, cases, strict=True)]) for of in (gains, gaps)]
            shares.append(over[0] / over[1])
        low, high = np.percentile(shares, [2.5, 97.5])
        told[arm] = f"{np.mean([draw.mean() for draw in gains]) / gap:.0%} ({low:.0%} to {high:.0%})"
    return dict(sorted(told.items()))


if __name__ == "__main__":
    main()
