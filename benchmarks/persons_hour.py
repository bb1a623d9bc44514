"""What an hour of a person is worth: hidden labels play the radiologist.

A model of four labeled cases labels and scores the pool. Then somebody has some hours, and one round follows, of as
many steps in every arm, from the same weights:

    start              before the round
    no person          the round alone
    scratch            random cases, labeled from scratch
    random, corrected  the same ones, of which the pseudo-labels are corrected
    queue, corrected   those that deserve a look, in the order of flaresemi_review

Corrections go the way that they go from 3D Slicer: --export-queue, files changed, --import-corrections. All of an arm's
cases fit into the hours; what does not is not begun. Dice is that of the development cases.

What is assumed of the person (constants below): an organ in an axial slice is corrected where it is less alike to the
real label than TOLERANCE, and then is exactly the real label; others stay as the model drew them. It takes
CORRECTING times what drawing it takes; each case costs LOOKING before that.

    OMP_NUM_THREADS=1 python benchmarks/persons_hour.py few-mr-coarse --draws 0 1 2
"""

import argparse
import dataclasses
import hashlib
import itertools
import shutil

import numpy as np
import running
from few_scores import Scored, Scores, gain
from label_next import Start, add_options

from flaresemi.case_names import case_file
from flaresemi.dataset import Case
from flaresemi.io.images import read_grid, write_label_map
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import read_organs
from flaresemi.review.decisions import ReviewDecision, decide
from flaresemi.review.exchange import export_queue, import_corrections
from flaresemi.review.material import Material

#: Seconds to draw an organ in one axial slice. hippocampus: 30 minutes each (Firbank et al. 2007, doi
#: 10.1002/hbm.20480) over the 35 that a crop has on average, both parts counted. openkbp: 2.3 hours for 42 organs
#: (Lucido et al. 2023, doi 10.3389/fonc.2023.1137803) over 28 slices. btcv: 30 to 60 minutes an organ (AbdomenAtlas,
#: arXiv 2305.09666) over about 90 slices.
DRAWING = {"hippocampus": 52.0, "openkbp": 7.0, "btcv": 30.0}

#: Correcting an organ in a slice, relative to drawing it. Chosen between 0.3 (Lucido et al.: 0.7 hours to revise what a
#: network drew) and 0.6 (40 % less time: Daisne and Blumhofer 2013, doi 10.1186/1748-717X-8-154).
CORRECTING = 0.5

#: Seconds to open a case and to look through it. Chosen.
LOOKING = 60.0

#: An organ in a slice whose Dice is at least this is left as it is. Chosen: about what two readers agree to.
TOLERANCE = 0.9

ARMS = ("start", "no person", "scratch", "random, corrected", "queue, corrected")

CAUTION = """What it does not say: how long a person really takes (the times are other people's or chosen, see the
constants), what tired or differing readers draw (corrections are exactly the real labels), what happens with good
pseudo-labels (these are weak: hardly a slice is left as it is), or after more than one round."""

#: Cases that are exported, at most: more than hours suffice for.
_MOST = 40

_BY = "hidden labels"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a person did with a case.

    Attributes:
        indices_zyx: The label map afterwards.
        slices: How many times an organ was drawn or corrected in a slice.
        seconds: How long it took.
    """

    indices_zyx: np.ndarray
    slices: int
    seconds: float


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("--hours", type=float, default=2.0, help="of the person [2]")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    hour = Hour(options)
    for number, arm in itertools.product(options.draws, options.arms):
        if not hour.few.scores.has(number, arm, "development"):
            hour.require_time()
            hour.label(number)
            hour.run(number, arm)
        hour.bench.publish(hour.report())


class Hour(Start):
    """Draws of a yardstick, and what a person makes of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.name = f"persons_hour_{self.few.yardstick.name}"
        self.bench = running.Bench(self.name, options.work)
        self.few.scores = Scores(self.few.bench.results / f"{self.name}.jsonl")
        self.hours = options.hours
        self.drawing = DRAWING[self.few.yardstick.dataset]

    def run(self, number: int, arm: str) -> None:
        """What a person does in an arm, the round after it, and its score."""
        folder = self.few.folder(number)
        if arm == "start":
            self.few._score(number, arm, self.workspace(number) / "models" / "fold_all", 0.0, test=False)
            return
        workspace = self.few._copy(number, f"hour {arm}", with_models=True)
        if not (workspace / "rounds").exists():
            shutil.copytree(self.workspace(number) / "rounds", workspace / "rounds")
        facts = f"{number} {arm}"
        if facts not in self.bench.steps:
            self.bench.record(facts, **self.work(number, arm, self.material(number, workspace)))
        self.few.bench.command(
            f"{number} hour {arm}", "flaresemi_semi_round", "-d", folder / "data", "-w", workspace, "--fold", "all",
            "--rounds", 1,
        )  # fmt: skip
        models = workspace / "rounds" / "fold_all" / "round_1" / "models" / "fold_all"
        self.few._score(number, arm, models, self.bench.steps[facts]["hours"], test=False)

    def work(self, number: int, arm: str, material: Material) -> dict[str, object]:
        """A person's work: which cases, how much was drawn, and how long it took."""
        if arm == "no person":
            return {"cases": [], "slices": 0, "hours": 0.0}
        folder = self.few.folder(number) / "corrections" / arm.replace(", ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        hidden = self.few.draw(number).hidden
        order = sorted(hidden, key=lambda name: hashlib.sha256(f"{number} hour {name}".encode()).digest())
        if arm == "queue, corrected":
            export_queue(material, folder, _MOST)
            order = [item.case_id for item in material.queue()[0] if item.case_id in hidden][:_MOST]
        spent, done, slices = 0.0, [], 0
        for case_id in order:
            work = self.done(number, material, case_id, arm == "scratch")
            if spent + work.seconds > 3600 * self.hours:
                break
            spent, slices = spent + work.seconds, slices + work.slices
            done.append(case_id)
            if work.slices:
                path = case_file(folder / "labels", case_id, ".nii.gz")
                grid = read_grid(material.unlabeled[case_id].images[0])
                write_label_map(path, material.labels.to_values(work.indices_zyx), grid)
            else:
                seen = material.label_hash(case_id, 1)
                decide(
                    material, case_id, _BY, ReviewDecision(revision=0, looked_at=seen, accepted=material.labels.names)
                )
        import_corrections(material, folder, _BY)
        return {"cases": done, "slices": slices, "hours": spent / 3600}

    def done(self, number: int, material: Material, case_id: str, is_scratch: bool) -> Work:
        """What becomes of a case."""
        case, labels = material.unlabeled[case_id], material.labels
        truth = self.truth(number, case, labels)
        if is_scratch:
            drawn = organ_slices(truth, labels)
            return Work(indices_zyx=truth, slices=drawn, seconds=LOOKING + self.drawing * drawn)
        seen = material.label_map(case, "newest", 1)
        if seen is None:
            raise SystemExit(f"case {case_id} has no pseudo-label")
        indices, changed = corrected(seen.indices_zyx, truth, labels)
        return Work(indices_zyx=indices, slices=changed, seconds=LOOKING + CORRECTING * self.drawing * changed)

    def truth(self, number: int, case: Case, labels: LabelSet) -> np.ndarray:
        """The hidden label of a case."""
        path = self.few.folder(number) / "truth" / "labelsTr" / f"{case.id}.nii.gz"
        return read_organs(dataclasses.replace(case, label=path), labels, read_grid(case.images[0]))

    def report(self) -> list[str]:
        """Markdown: what the arms gained, and by how much work."""
        arms, yardstick = self.few.scores.by_arm("development"), self.few.yardstick
        lines = [
            f"# A person's hour: {yardstick.name.replace('_', '-')}, {yardstick.iterations} iterations a model",
            "",
            f"Drawing an organ in a slice {self.drawing:g} s, correcting it {CORRECTING * self.drawing:g} s, looking "
            f"at a case {LOOKING:g} s; corrected below a Dice of {TOLERANCE:g} in the slice; {self.hours:g} hours at "
            "most.",
            "",
            "| arm | draws | cases | organs in slices | hours | mean Dice | by draw | Dice − start (95 %) "
            "| Dice − no person (95 %) | the same per hour |",
            "|---|---:|---:|---:|---:|---:|---|---|---|---:|",
        ]
        for arm in ARMS:
            draws = arms.get(arm, {})
            steps = {number: self.bench.steps.get(f"{number} {arm}") for number in range(100)}
            work = [facts for number, facts in steps.items() if facts and (number in draws or not draws)]
            if not draws and not work:
                continue
            cases, slices, hours = (
                np.mean([amount(each, key) for each in work]) if work else 0 for key in ("cases", "slices", "hours")
            )
            row = [arm, len(draws), f"{cases:.1f}", f"{slices:.0f}", f"{hours:.2f}", "not scored", *"––––"]
            if draws:
                row[5:] = self.scored(arms, arm, hours)
            lines.append(f"| {' | '.join(map(str, row))} |")
        lines.append("")
        scored = [arm for arm in ARMS[2:] if arm in arms]
        for one, other in itertools.combinations(scored, 2):
            lines += [f"* {other} − {one}: {gain(arms.get(one, {}), arms.get(other, {}))}"]
        return [*lines, "", CAUTION, "", "Made:", "", *(f"* {made}" for made in self.few.scores.made())]

    def scored(self, arms: dict[str, dict[int, Scored]], arm: str, hours: float) -> list[str]:
        """The cells of an arm that has scores."""
        draws, alone = arms[arm], arms.get("no person", {})
        means = [scored.mean(0) for _, scored in sorted(draws.items())]
        won = [draws[number].mean(0) - alone[number].mean(0) for number in draws if number in alone]
        return [
            f"{np.mean(means):.4f}",
            ", ".join(f"{mean:.4f}" for mean in means),
            gain(arms.get("start", {}), draws),
            gain(alone, draws),
            f"{np.mean(won) / hours:+.4f}" if hours and won else "–",
        ]


def amount(facts: dict, key: str) -> float:
    """A number of a step's record; the length of a list."""
    value = facts.get(key, 0)
    return len(value) if isinstance(value, list) else value


def organ_slices(indices_zyx: np.ndarray, labels: LabelSet) -> int:
    """In how many axial slices each organ is, all organs together."""
    return sum(int(labels.mask(indices_zyx, organ).any((1, 2)).sum()) for organ in range(1, labels.count + 1))


def corrected(seen_zyx: np.ndarray, truth_zyx: np.ndarray, labels: LabelSet) -> tuple[np.ndarray, int]:
    """A label map as somebody corrects it, slice by slice and organ by organ; how many of them were changed."""
    result, changed = seen_zyx.copy(), 0
    for organ in range(1, labels.count + 1):
        seen, truth = labels.mask(seen_zyx, organ), labels.mask(truth_zyx, organ)
        both, all_voxels = (seen & truth).sum((1, 2)), seen.sum((1, 2)) + truth.sum((1, 2))
        wrong = 2 * both < TOLERANCE * all_voxels
        takes = (seen | truth) & wrong[:, None, None]
        result[takes] = truth_zyx[takes]
        changed += int(wrong.sum())
    return result, changed


if __name__ == "__main__":
    main()
