"""flaresemi_demo: the whole job on synthetic scans, from files to a Dice table and pictures."""

import argparse
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from flaresemi.case_names import case_file
from flaresemi.cli import evaluate, plan_and_preprocess, predict, semi_round, train
from flaresemi.cli.before_after import case_means, draw, told
from flaresemi.cli.common import EXIT_OK, StrictParser, print_next, run
from flaresemi.cli.numbers import count, number
from flaresemi.cli.replacing import refuse_foreign
from flaresemi.dataset import LAYOUTS, TEST_LABELS, load_dataset
from flaresemi.errors import ConfigError, listed
from flaresemi.evaluation.summary import load_summary
from flaresemi.files import entries
from flaresemi.geometry import IntTriple
from flaresemi.phantom.dataset import SIZES, write_phantom_dataset
from flaresemi.ranges import Few, Seed
from flaresemi.records import load_record, save_record
from flaresemi.reporting.overlay import is_overlay
from flaresemi.rounds.chain import ChainState
from flaresemi.workspace import Workspace

#: Patches so small that two slow cores train on one in a third of a second.
_PLANS = ("--preset", "small", "--gpu-memory-gib", "0.5")

#: Time for the networks on two cores, so that the demo ends within ten minutes; few validations on the way, which take
#: from it.
_COARSE_TIME = "45s"
_FINE_TIME = "150s"
_VALIDATIONS = ("--validations", "2")

#: So short a training learns more from patients as they are: they come from one generator.
_AUGMENTATION = ("--augmentation", "none")

#: Names of what the supervised models and those after the round predict.
_BEFORE, _AFTER = "supervised", "after_round_1"

#: The round of self-training goes on from the supervised weights, for as many steps again.
_ROUND = ("--rounds", "1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoRecord:
    """The options that the data of a demo folder were made with, so that a second call goes on with the same."""

    schema_version: int = 1
    layout: Literal["flaresemi", "nnU-Net"]
    labeled: Few
    unlabeled: Few
    test: Few
    size: str
    seed: Seed


@dataclasses.dataclass(frozen=True, slots=True)
class DemoFolder:
    """Every path of a demo."""

    root: Path
    layout: str

    @property
    def record(self) -> Path:
        return self.root / "demo.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def test_images(self) -> Path:
        return self.data / LAYOUTS[self.layout][3]

    @property
    def test_labels(self) -> Path:
        return self.data / TEST_LABELS[self.layout]

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.data / "flaresemi")

    @property
    def pictures(self) -> Path:
        """Of the test cases before and after the round."""
        return self.root / "before_and_after"

    def predictions(self, name: str) -> Path:
        """Label maps of the test cases, by models of that name."""
        return self.root / f"predictions_{name}"

    def summary(self, name: str) -> Path:
        return self.root / f"summary_{name}.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One command of the main job."""

    program: str
    main: Callable[[Sequence[str]], int]
    words: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(_demo, _parser(), argv)


def _demo(options: argparse.Namespace) -> int:
    if not options.only_data and min(options.labeled, options.test) < 1:
        raise ConfigError("the demo needs labeled and test cases", fix="leave --labeled and --test at 1 or more")
    started = time.monotonic()
    folder = DemoFolder(options.output, options.layout)
    _make_data(folder, options)
    if options.only_data:
        print(f"{folder.data}: {options.labeled} labeled, {options.unlabeled} unlabeled, {options.test} test cases")
        print_next(["flaresemi_plan_and_preprocess", "-d", str(folder.data)])
        return EXIT_OK
    for step in _steps(folder, options):
        print(f"\n$ {shlex.join([step.program, *step.words])}", flush=True)
        code = step.main(step.words)
        if code != EXIT_OK:
            return code
    print(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes")
    if options.unlabeled and folder.summary(_AFTER).is_file():
        _tell_the_round(folder)
    else:
        print("look at the pictures above")
    return EXIT_OK


def _tell_the_round(folder: DemoFolder) -> None:
    """Prints what the round of self-training changed, and where to look; draws the test cases before and after it."""
    before, after = (load_summary(folder.summary(name)) for name in (_BEFORE, _AFTER))
    dataset = load_dataset(folder.data)
    images = {case.id: case.images for case in dataset.test}
    means = case_means(before), case_means(after)
    refuse_foreign(
        (case_file(folder.pictures, case_id, ".png") for case_id in images),
        is_overlay,
        writer="flaresemi_demo",
        overwrite=False,
    )
    predictions = folder.predictions(_BEFORE), folder.predictions(_AFTER)
    pictures = draw(predictions, folder.test_labels, images, means, dataset.labels, folder.pictures)
    print(f"\n{told(before, after)}")
    chain = load_record(folder.workspace.verdict(("0",)), ChainState, error=ConfigError)
    if chain.verdict is not None:
        print(f"What the round itself could know, from labeled cases held out: {chain.verdict.why}.")
    print("\nWhere to look:")
    for picture in pictures:
        print(f"  {picture}")
    print("    every test scan before and after the round, side by side, the one that gained most first;")
    print("    filled: what was found, outlined: the truth")
    print(f"  {folder.workspace.round('0', 1).report}")
    print("    the round's own report: what it selected and learned, and whether to trust it")
    print(f"  {folder.summary(_BEFORE).with_suffix('.csv')}, {folder.summary(_AFTER).with_suffix('.csv')}")
    print("    every score of every test scan")


def _make_data(folder: DemoFolder, options: argparse.Namespace) -> None:
    """Writes the dataset, or what is missing of it.

    Raises:
        ConfigError: the folder holds a demo that was made with other options, or data that no demo made.
    """
    wanted = DemoRecord(
        layout=options.layout,
        labeled=options.labeled,
        unlabeled=options.unlabeled,
        test=options.test,
        size=options.size,
        seed=options.seed,
    )
    if os.path.lexists(folder.record):
        found = load_record(folder.record, DemoRecord, error=ConfigError)
        if found != wanted:
            raise ConfigError(
                f"the data in this folder were made with other options: {_difference(found, wanted)}",
                where=folder.record,
                fix="repeat those options, or name another folder with -o",
            )
    elif theirs := entries(folder.root, (folder.data.name, folder.pictures.name, "predictions_*", "summary_*")):
        raise ConfigError(
            f"there are data in this folder that no demo made: {listed([path.name for path in theirs])}",
            where=folder.root,
            fix="name another folder with -o",
        )
    save_record(folder.record, wanted)
    write_phantom_dataset(
        folder.data,
        layout=wanted.layout,
        labeled=wanted.labeled,
        unlabeled=wanted.unlabeled,
        test=wanted.test,
        size=_size(wanted.size),
        seed=wanted.seed,
        workers=options.workers,
    )


def _difference(found: DemoRecord, wanted: DemoRecord) -> str:
    pairs = {
        field.name: (getattr(found, field.name), getattr(wanted, field.name)) for field in dataclasses.fields(found)
    }
    return ", ".join(f"{name} {was}, not {now}" for name, (was, now) in pairs.items() if was != now)


def _steps(folder: DemoFolder, options: argparse.Namespace) -> Iterator[Command]:
    """The main job, each command such that a second call goes on where the first one ended."""
    data = ("-d", str(folder.data))
    device = ("--device", options.device)
    workers = () if options.workers is None else ("--workers", str(options.workers))
    yield Command("flaresemi_plan_and_preprocess", plan_and_preprocess.main, (*data, *_PLANS, *workers))
    for stage, length in (("COARSE", options.coarse_time), ("FINE", options.fine_time)):
        words = (stage, "0", *data, "--time-budget", length, *_AUGMENTATION, *_VALIDATIONS, *device, "--continue")
        yield Command("flaresemi_train", train.main, words)
    pictures = () if options.unlabeled else ("--overlays", str(options.test))  # with a round: both side by side
    yield from _score(folder, options, _BEFORE, folder.workspace.models, pictures)
    if options.unlabeled:
        yield Command("flaresemi_semi_round", semi_round.main, (*data, "--fold", "0", *_ROUND, *device))
        yield from _score(folder, options, _AFTER, folder.workspace.round("0", 1).models)


def _score(
    folder: DemoFolder, options: argparse.Namespace, name: str, models: Path, more: tuple[str, ...] = ()
) -> Iterator[Command]:
    """Prediction and evaluation of the test cases."""
    predictions, summary = folder.predictions(name), folder.summary(name)
    words = ("-i", str(folder.test_images), "-o", str(predictions), "-m", str(models), "--fold", "0")
    yield Command("flaresemi_predict", predict.main, (*words, "--device", options.device, "--continue"))
    words = ("-p", str(predictions), "-r", str(folder.test_labels), "-o", str(summary), "-d", str(folder.data))
    yield Command("flaresemi_evaluate", evaluate.main, (*words, *more))


def _parser() -> StrictParser:
    parser = StrictParser(
        "flaresemi_demo",
        "Make synthetic CT scans and run the whole job on them: plan, preprocess, train, predict, evaluate, "
        "and a round of self-training. "
        "A second call goes on where the first one ended.",
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, default=Path("demo"), metavar="FOLDER", help="folder for everything [demo]")
    add("--only-data", action="store_true", help="make the dataset and stop")
    add("--layout", choices=tuple(TEST_LABELS), default="flaresemi", help="names of the dataset's folders [flaresemi]")
    add("--labeled", type=number(Few), default=6, metavar="N", help="labeled cases [6]")
    add("--unlabeled", type=number(Few), default=14, metavar="N", help="unlabeled cases; 0: no self-training [14]")
    add("--test", type=number(Few), default=4, metavar="N", help="test cases [4]")
    add("--size", type=_checked_size, default="demo", help=f"{', '.join(SIZES)}, or voxels as 72x112x112 [demo]")
    add("--seed", type=number(Seed), default=0, help="of the synthetic patients [0]")
    add("--coarse-time", default=_COARSE_TIME, metavar="TIME", help=f"training time of COARSE [{_COARSE_TIME}]")
    add("--fine-time", default=_FINE_TIME, metavar="TIME", help=f"training time of FINE [{_FINE_TIME}]")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    add("--workers", type=count, metavar="N", help="processes for data and preprocessing [one per core]")
    return parser


def _checked_size(text: str) -> str:
    """A size as it was written, once it is known to mean something."""
    _size(text)
    return text


def _size(text: str) -> str | IntTriple:
    if text in SIZES:
        return text
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write {', '.join(SIZES)} or 72x112x112")
    z, y, x = (int(number) for number in numbers)
    return z, y, x


if __name__ == "__main__":
    sys.exit(main())
