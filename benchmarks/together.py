"""Models of several seeds that label the pool together: better labels, and better students of one model's size?

On a yardstick of few.py. Members are supervised trainings that differ in their seed;
the first is arm a. A round is the default one but for
who labels: member 0 alone, or the mean of all members' probabilities (both by `--teacher`, so that nothing else
differs; the student starts from member 0). Scored on the development cases: each member, the mean of all, and the two
students.

    OMP_NUM_THREADS=1 python benchmarks/together.py few-ct-quick --draws 0 1 2 --members 3

Result: results/together_*.md and .jsonl; what stands there is not done again.
"""

import argparse
import itertools
import shutil
from pathlib import Path

import running
from few import Few, add_options, yardstick_of
from few_scores import Scores, table

from flaresemi.plans import load_plans


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("--members", type=int, default=3)
    options = parser.parse_args()
    together = Together(options)
    for number in options.draws:
        together.run(number, options.members)
        together.report()


class Together(Few):
    """A yardstick whose start is trained several times."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(yardstick_of(options.yardstick, options.iterations, options.preset), options.work)
        self.bench = running.Bench(f"together_{self.yardstick.name}", options.work)
        self.scores = Scores(self.bench.results / f"{self.bench.name}.jsonl")

    def run(self, number: int, members: int) -> None:
        arms = ["a", *(f"member {at}" for at in range(1, members)), f"mean of {members}"]
        rounds = ("taught by one", f"taught by {members}")
        if all(self.scores.has(number, arm, "development") for arm in (*arms, *rounds)):
            return
        self.prepare(number)
        models = [self._member(number, at) for at in range(members)]
        ensemble = self.folder(number) / f"of_{members}"
        for at, each in enumerate(models):
            shutil.copytree(each, ensemble / f"fold_{at}", dirs_exist_ok=True)
        for arm, place in zip(arms, (*models, ensemble), strict=True):
            if not self.scores.has(number, arm, "development"):
                self._score(number, arm, place, 0.0, test=False)
        for arm, teacher in zip(rounds, (models[0], ensemble), strict=True):
            if not self.scores.has(number, arm, "development"):
                self._round(number, arm, teacher)

    def _member(self, number: int, at: int) -> Path:
        """A supervised training; the first is the start of the rounds."""
        folder, yardstick = self.folder(number), self.yardstick
        workspace = folder / "few" if at == 0 else self._copy(number, f"member_{at}", with_models=False)
        lengths = {"FINE": yardstick.iterations}
        if load_plans(workspace / "plans.json").two_stage:
            lengths = {"COARSE": yardstick.coarse_iterations, **lengths}
        batch = () if yardstick.batch is None else ("--batch-size", yardstick.batch)
        for stage, iterations in lengths.items():
            self.bench.command(
                f"{number} member {at} {stage}", "flaresemi_train", stage, "all", "-d", folder / "data",
                "-w", workspace, "--iterations", iterations, *batch, "--seed", number + 100 * at,
                "--validations", 0, "--no-validation", "--continue",
            )  # fmt: skip
        return workspace / "models" / "fold_all"

    def _round(self, number: int, arm: str, teacher: Path) -> None:
        workspace = self._copy(number, arm, with_models=True)
        words = ("-d", self.folder(number) / "data", "-w", workspace, "--fold", "all", "--rounds", 1)
        self.bench.command(f"{number} {arm}", "flaresemi_semi_round", *words, "--teacher", teacher)
        students = workspace / "rounds" / "fold_all" / "round_1" / "models" / "fold_all"
        self._score(number, arm, students, 0.0, test=False)

    def report(self, *_: object, **__: object) -> None:
        by_arm = self.scores.by_arm("development")
        lines = [f"# Labeled together: {self.yardstick.name}, {self.yardstick.iterations} iterations per model", ""]
        lines += [*table(by_arm, "taught by one"), "", "Mean Dice by draw:", ""]
        for arm, draws in by_arm.items():
            lines.append(f"* {arm}: {', '.join(f'{scored.mean(0):.4f}' for _, scored in sorted(draws.items()))}")
        made = (f"* {made}" for made in self.scores.made())
        self.bench.report("\n".join(itertools.chain(lines, ["", "Made:", ""], made)))


if __name__ == "__main__":
    main()
