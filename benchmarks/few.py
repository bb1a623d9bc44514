"""What self-training gains from few labels: supervised, naive, FlareSemiSeg's rule, the default, and the ceiling.

`few-ct`: openkbp with 4 labeled cases and a pool of 100; `few-mr`: hippocampus with 4 and 164. Every draw has other
labeled cases. The arms of a draw share plans, network, and the iterations of each model. The plans are those of preset
`small`, one stage, but for half of its features (8, 16, 32...): a step takes 0.4 of the time, and a draw needs eleven
times the iterations of one model.

`acdc-3`, `acdc-7` and `btcv-4` have the split that the field's papers use, so draws differ in their seed alone, and the
plans that anyone gets. Their test cases are the papers' own; those of BTCV are not among the data.

    a       supervised on the few                       the start of b, c, d
    a-long  the same, as many iterations as d has in all
    b       two rounds on all pseudo-labels, naively: augmented like the real ones, nothing pasted; otherwise like d
    c       two rounds with --preset flaresemiseg
    d       two rounds with the defaults
    e       supervised on every label of the training cases: the ceiling

Choices are made on the development cases (part of neither the labeled cases nor the pool). The test cases are scored
with --test. Every step is run once and a stopped one goes on: start the same command again. The scores of every case
are kept in results/few_*.jsonl: an arm that stands there is done, whatever the machine, and results/few_*.md tells of
all of them. A draw that was begun elsewhere trains its arm a again, from which the others start.

    OMP_NUM_THREADS=1 python benchmarks/few.py few-ct --draws 0 --arms a a-long b c d e [--test]

Draws may run at the same time, each with its own processes: on two cores, two trainings of one thread each take 0.34 s
a step of few-mr, one training of both threads 0.27 s.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import running
from few_scores import Scores, table

from flaresemi.files import write_text
from flaresemi.planning.presets import PRESETS
from flaresemi.plans import load_plans
from flaresemi.records import save_record

#: Options of flaresemi_train by arm: one change each to arm a, tried on the development cases.
STARTS: dict[str, tuple[str, ...]] = {
    "a mirrored": ("--mirror-axes", "x"),
    "a strong": ("--augmentation", "strong"),
    "a adamw": ("--optimizer", "adamw"),
    "a mean of voxels": ("--trainer", "few_trainers:MeanOfVoxels"),
    "a root of voxels": ("--trainer", "few_trainers:RootOfVoxels"),
}

#: Arm a with networks of one convolution at full resolution and one per decoder level.
FEWER_CONVOLUTIONS = "a fewer convolutions"

SUPERVISED = ("a", "a-long", "e", *STARTS, FEWER_CONVOLUTIONS)

#: Options of flaresemi_semi_round by arm; all run two rounds on fold 'all'.
ROUNDS: dict[str, tuple[str, ...]] = {
    "b": (
        "--select", "case", "--best-share", "1", "--case-threshold", "0", "--pseudo-augmentation", "standard",
        "--paste-share", "0",
    ),
    "c": ("--preset", "flaresemiseg"),
    "d": (),
}  # fmt: skip

#: One change each to the defaults, tried on the development cases.
VARIANTS: dict[str, tuple[str, ...]] = {
    "live teacher": ("--trainer", "live_teacher"),
    "live teacher that waits": ("--trainer", "live_teacher", "--trainer-setting", "waits=1"),
    "live teacher that is sure": ("--trainer", "live_teacher", "--trainer-setting", "confidence=0.5"),
    "nothing pasted": ("--paste-share", "0"),
    "all pasted": ("--paste-share", "1"),
    "from scratch": ("--start", "scratch"),
    "standard augmentation": ("--pseudo-augmentation", "standard"),
    "fine-tuned": ("--fine-tune", "0.1"),
    "half of the length": ("--length", "0.5"),
    "a quarter of the length": ("--length", "0.25"),
    "organ threshold 0.7": ("--organ-threshold", "0.7"),
    "organ threshold 0.9": ("--organ-threshold", "0.9"),
    "one threshold": ("--organ-share", "0"),
    "no threshold": ("--organ-threshold", "0"),
    "three quarters pseudo": ("--pseudo-share", "0.75"),
    "case selection": ("--select", "case"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """A data set with few labels.

    Attributes:
        dataset: Its folder.
        z_range: Organs that are scored in the reference's slices only.
        labeled: Cases that keep their labels, where they are dealt.
        development: Labeled cases outside the pool, where they are dealt.
        iterations: Of FINE, in every model.
        coarse_iterations: Of COARSE, where the plans have it.
        batch: Patches per step; None: as planned.
        test: Every how manieth labeled case is a test case; 0: the dataset has its own.
        split: Keys of the dataset's split.json, for the labeled and the development cases; None: cases are dealt.
        is_thin: One stage, with half of the features.
        preset: Of the plans.
        patch_zyx: FINE's patch, smaller than planned, where steps shall be quick; with `is_thin`.
        is_coarse: FINE is what the preset has for COARSE: twice the spacing, and a network to match.
    """

    name: str
    dataset: str
    z_range: tuple[str, ...] = ()
    iterations: int
    labeled: int = 0
    development: int = 0
    coarse_iterations: int = 0
    batch: int | None = None
    test: int = 0
    split: tuple[str, str] | None = None
    is_thin: bool = False
    patch_zyx: tuple[int, int, int] | None = None
    preset: str = "small"
    is_coarse: bool = False


def _published(name: str, dataset: str, labeled: str, development: str) -> Yardstick:
    """One with the field's own split: the keys of its parts."""
    return Yardstick(name=name, dataset=dataset, iterations=1500, coarse_iterations=600, split=(labeled, development))


YARDSTICKS = {
    "few-mr-coarse": Yardstick(
        name="few_mr_coarse",
        dataset="hippocampus",
        labeled=4,
        development=40,
        iterations=300,
        batch=2,
        test=5,
        is_coarse=True,
    ),
    "few-ct": Yardstick(
        name="few_ct",
        dataset="openkbp",
        z_range=("spinal cord", "esophagus"),
        labeled=4,
        development=10,
        iterations=1200,
        batch=2,
        is_thin=True,
    ),
    "few-ct-quick": Yardstick(
        name="few_ct_quick",
        dataset="openkbp",
        z_range=("spinal cord", "esophagus"),
        labeled=4,
        development=10,
        iterations=600,
        batch=2,
        is_thin=True,
        patch_zyx=(16, 48, 48),
    ),
    "few-mr": Yardstick(
        name="few_mr", dataset="hippocampus", labeled=4, development=40, iterations=1600, batch=2, test=5, is_thin=True
    ),
    "acdc-3": _published("acdc_3", "acdc", "labeled_3_patients", "validation"),
    "acdc-7": _published("acdc_7", "acdc", "labeled_7_patients", "validation"),
    "btcv-4-quick": Yardstick(
        name="btcv_4_quick",
        dataset="btcv",
        iterations=600,
        batch=2,
        split=("labeled_4", "development"),
        is_thin=True,
        patch_zyx=(32, 48, 64),
    ),
    "btcv-4": _published("btcv_4", "btcv", "labeled_4", "development"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Which case has which part."""

    labeled: tuple[str, ...]
    development: tuple[str, ...]
    hidden: tuple[str, ...]


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("--arms", nargs="+", default=["a", "b", "c", "d", "e", "a-long"])
    parser.add_argument("--test", action="store_true", help="score the test cases too")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where the commands find few_trainers
    few = Few(yardstick_of(options.yardstick, options.iterations, options.preset), options.work)
    for number in options.draws:
        arms = [arm for arm in options.arms if not few.is_done(number, arm, options.rounds, test=options.test)]
        if arms:
            few.prepare(number)
        if "e" in arms:
            few.prepare_ceiling(number)
        for arm in arms:
            few.run(number, arm, options.rounds, test=options.test)
            few.report(options.rounds, test=options.test)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What names a yardstick and its draws."""
    parser.add_argument("yardstick", choices=tuple(YARDSTICKS))
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--iterations", type=int, help="of every model, instead of the yardstick's")
    parser.add_argument("--preset", default="small", choices=tuple(PRESETS))


def _make_coarse(path: Path) -> None:
    """Gives FINE the spacing, the patch and the network that the preset has for COARSE."""
    plans = load_plans(path)
    coarse = {name: getattr(plans.coarse, name) for name in ("spacing_zyx_mm", "patch_zyx", "network")}
    save_record(path, dataclasses.replace(plans, fine=dataclasses.replace(plans.fine, **coarse)))


def _make_fewer_convolutions(path: Path) -> None:
    """Gives both networks one convolution at full resolution and one per decoder level."""
    plans, changed = load_plans(path), {}
    for name, stage in (("coarse", plans.coarse), ("fine", plans.fine)):
        levels = len(stage.network.features)
        convs = {"encoder_convs": (1, *(2,) * (levels - 1)), "decoder_convs": (1,) * (levels - 1)}
        changed[name] = dataclasses.replace(stage, network=dataclasses.replace(stage.network, **convs))
    save_record(path, dataclasses.replace(plans, **changed))


def yardstick_of(name: str, iterations: int | None, preset: str = "small") -> Yardstick:
    """The yardstick; with other iterations or another preset it has another name, and so results of its own."""
    yardstick = YARDSTICKS[name]
    if preset != yardstick.preset:
        yardstick = dataclasses.replace(yardstick, name=f"{yardstick.name}_{preset}", preset=preset, is_thin=False)
    if iterations is None:
        return yardstick
    return dataclasses.replace(yardstick, name=f"{yardstick.name}_{iterations}", iterations=iterations)


class Few:
    """One yardstick: folder of work and steps."""

    def __init__(self, yardstick: Yardstick, work: Path) -> None:
        self.yardstick = yardstick
        self.bench = running.Bench(yardstick.name, work)
        self.source = running.need(running.SHARED / yardstick.dataset)
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (self.source / "labelsTr").iterdir())
        self.scores = Scores(self.bench.results / f"{yardstick.name}.jsonl")
        self.test_cases = tuple(cases[:: yardstick.test]) if yardstick.test else ()
        self.cases = tuple(case for case in cases if case not in set(self.test_cases))

    def draw(self, number: int) -> Draw:
        """The field's own split, or cases dealt by a hash of draw and name, so that no library's generator matters."""
        if self.yardstick.split is not None:
            split = running.load_json(self.source / "split.json")
            labeled, development = (tuple(sorted(split[key])) for key in self.yardstick.split)
            hidden = tuple(case for case in self.cases if case not in {*labeled, *development})
            return Draw(labeled=labeled, development=development, hidden=hidden)
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
        """Links the data sets of a draw, plans it, and prepares it once for the arms that know few labels."""
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
        elif (self.source / "imagesTs").exists():
            for group in ("images", "labels"):
                for path in (self.source / f"{group}Ts").iterdir():
                    running.link_or_copy(path, folder / "test" / f"{group}Tr" / path.name)
        unlabeled = self.source / "imagesUn"
        for path in unlabeled.iterdir() if unlabeled.exists() else ():
            running.link_or_copy(path, data / "imagesUn" / path.name)
        description = json.loads((self.source / "dataset.json").read_text(encoding="utf-8"))
        if self.yardstick.z_range:
            description["z_range"] = self.yardstick.z_range
        for place in (data, truth):
            write_text(place / "dataset.json", json.dumps(description))
        one = self.yardstick.is_thin or self.yardstick.is_coarse
        plan = ("--preset", self.yardstick.preset, *(("--stages", "one") if one else ()))
        words = ("flaresemi_plan_and_preprocess", "-d", data, "-w", folder / "few", *self._alone())
        if self.yardstick.is_coarse and f"{number} plan" not in self.bench.steps:
            self.bench.command(f"{number} plans", *words, "--plan-only", *plan)
            _make_coarse(folder / "few" / "plans.json")
            plan = ()
        self.bench.command(f"{number} plan", *words, *plan)
        if self.yardstick.is_thin:
            running.halve_features(folder / "few" / "plans.json", self.yardstick.patch_zyx)

    def prepare_ceiling(self, number: int) -> None:
        """Prepares arm e: the plans of the few, and every label of the training cases in 'fold 0'."""
        folder, draw = self.folder(number), self.draw(number)
        truth, workspace = folder / "truth", folder / "all"
        if not workspace.exists():
            workspace.mkdir()
            for name in ("plans.json", "fingerprint.json"):
                shutil.copyfile(folder / "few" / name, workspace / name)
            fold = {"train": sorted((*draw.labeled, *draw.hidden)), "validation": draw.development}
            everything = sorted((*draw.labeled, *draw.hidden, *draw.development))
            splits = {"schema_version": 1, "seed": number, "case_ids": everything, "folds": [fold]}
            (workspace / "splits.json").write_text(json.dumps(splits))
        self.bench.command(
            f"{number} plan e",
            "flaresemi_plan_and_preprocess",
            "-d",
            truth,
            "-w",
            workspace,
            "--keep-plans",
            *self._alone(),
        )

    def _alone(self) -> tuple[object, ...]:
        """One process prepares where commands run in this one."""
        return ("--workers", 1) if self.bench.inside else ()

    def _link(self, case: str, target: Path, group: str) -> None:
        image = f"{case}_0000.nii.gz"
        running.link_or_copy(self.source / "imagesTr" / image, target / f"images{group}" / image)
        if group == "Tr":
            label = f"{case}.nii.gz"
            running.link_or_copy(self.source / "labelsTr" / label, target / "labelsTr" / label)

    def is_done(self, number: int, arm: str, rounds: int, *, test: bool) -> bool:
        """Whether all scores of an arm are kept already."""
        supervised = arm in SUPERVISED
        names = [arm] if supervised else [f"{arm} {round_number}" for round_number in range(1, rounds + 1)]
        return all(self.scores.has(number, name, part) for name in names for part in self._parts(test))

    def run(self, number: int, arm: str, rounds: int, *, test: bool) -> None:
        """Trains an arm of a draw, and scores it."""
        if arm in SUPERVISED:
            models, seconds = self._train(number, arm, rounds)
            self._score(number, arm, models, seconds / 3600, test=test)
            return
        _, seconds = self._train(number, "a", rounds)
        words = ROUNDS[arm] if arm in ROUNDS else VARIANTS[arm]
        workspace = self._copy(number, arm, with_models=True)
        self._share_labels(number, workspace)
        for round_number in range(1, rounds + 1):
            self.bench.command(
                f"{number} {arm} round {round_number}",
                "flaresemi_semi_round",
                "-d",
                self.folder(number) / "data",
                "-w",
                workspace,
                "--fold",
                "all",
                "--rounds",
                round_number,
                *words,
            )
            round_folder = workspace / "rounds" / "fold_all" / f"round_{round_number}"
            steps = running.load_json(round_folder / "round.json")["steps"]
            seconds += sum(step["seconds"] for step in steps.values())
            models = round_folder / "models" / "fold_all"
            self._score(number, f"{arm} {round_number}", models, seconds / 3600, test=test)

    def _train(self, number: int, arm: str, rounds: int) -> tuple[Path, float]:
        """A supervised arm: its models, and the seconds that they took."""
        folder = self.folder(number)
        data, workspace, fold = folder / "data", folder / "few", "all"
        if arm == "e":
            data, workspace, fold = folder / "truth", folder / "all", "0"
        elif arm != "a":
            workspace = self._copy(number, arm, with_models=False)
        if arm == FEWER_CONVOLUTIONS:
            _make_fewer_convolutions(workspace / "plans.json")
        times = 1 + rounds if arm == "a-long" else 1
        lengths = {"FINE": self.yardstick.iterations}
        if load_plans(workspace / "plans.json").two_stage:
            lengths = {"COARSE": self.yardstick.coarse_iterations, **lengths}
        batch = () if self.yardstick.batch is None else ("--batch-size", self.yardstick.batch)
        seconds = 0.0
        for stage, iterations in lengths.items():
            seconds += self.bench.command(
                f"{number} {arm}" + (" COARSE" if stage == "COARSE" else ""),
                "flaresemi_train",
                stage,
                fold,
                "-d",
                data,
                "-w",
                workspace,
                "--iterations",
                times * iterations,
                *batch,
                *STARTS.get(arm, ()),
                "--seed",
                number,
                "--validations",
                0,
                "--no-validation",
                "--continue",
            )
        return workspace / "models" / f"fold_{fold}", seconds

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

    def _share_labels(self, number: int, workspace: Path) -> None:
        """The models of arm a label once for all: the first arm's round, without its students.

        What an arm chooses otherwise it selects, and labels, again.
        """
        rounds = Path("rounds") / "fold_all" / "round_1"
        other = min(self.folder(number).glob(f"*/{rounds}/report.html"), default=None)
        if other is not None and not (workspace / rounds).exists():
            shutil.copytree(other.parent, workspace / rounds, ignore=shutil.ignore_patterns("models", "report.html"))

    def _score(self, number: int, arm: str, models: Path, hours: float, *, test: bool) -> None:
        folder = self.folder(number)
        for part in self._parts(test):
            predictions, summary = folder / "predictions" / f"{part} {arm}", folder / f"{part} {arm}.json"
            self.bench.command(
                f"{number} {arm} predict {part}",
                "flaresemi_predict",
                "-i",
                folder / part / "imagesTr",
                "-o",
                predictions,
                "-m",
                models,
                "--continue",
            )
            self.bench.command(
                f"{number} {arm} evaluate {part}",
                "flaresemi_evaluate",
                "-p",
                predictions,
                "-r",
                folder / part / "labelsTr",
                "-o",
                summary,
                "-d",
                folder / "data",
            )
            made = f"{running.when_and_what()}; {running.machine()}"
            self.scores.add(number, arm, part, summary, hours=hours, made=made)

    def _parts(self, test: bool) -> tuple[str, ...]:
        has_test = bool(self.test_cases) or (self.source / "imagesTs").exists()
        return ("test", "development") if test and has_test else ("development",)

    def report(self, rounds: int, *, test: bool) -> None:
        """Writes the tables of all that has been scored, here and elsewhere."""
        yardstick = self.yardstick
        title = f"{yardstick.name.replace('_', '-')}: {len(self.draw(0).labeled)} labeled cases"
        lines = [
            f"# {title}, {yardstick.iterations} iterations per model, "
            + (f"batch {yardstick.batch}, 8 features and up" if yardstick.is_thin else "plans as they come")
        ]
        for part in self._parts(test):
            lines += ["", f"## {part} cases", "", *table(self.scores.by_arm(part), f"d {rounds}")]
        lines += ["", "Made:", "", *(f"* {made}" for made in self.scores.made())]
        self.bench.report("\n".join(lines))


if __name__ == "__main__":
    main()
