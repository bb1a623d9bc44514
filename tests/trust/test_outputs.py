# ruff: noqa: F811
"""Every command × every file that it leaves × what somebody else has there already: theirs is as it was afterwards.

The files are found by running the commands, so that the next artefact is covered without anyone thinking of it.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flaresemi.cli import demo, evaluate, export, plan_and_preprocess, predict, semi_round, train
from flaresemi.workspace import Workspace
from tests.rounds.conftest import QUICK, trained  # noqa: F401

CPU = ("--device", "cpu", "--precision", "fp32")
TAKE_ALL = ("--select", "case", "--best-share", "1.0")
THEIRS = b"years of work"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command and where it writes.

    Attributes:
        run: Runs it; gives the exit code.
        begin: What has to be in the place before, copied from here; None: nothing.
        inside: The part of the place in which files are planted: what is outside belongs to flaresemi already.
    """

    run: Callable[[Path], int]
    begin: Path | None = None
    inside: str = "."


@pytest.fixture(scope="module")
def commands(trained: Path, phantom_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    root = tmp_path_factory.mktemp("made")
    data, models = ("-d", str(phantom_dataset)), ("-m", str(trained / "models"))
    images = phantom_dataset / "unlabeled_image"
    planned, labeled = root / "planned", root / "labeled"
    shutil.copytree(trained, planned, ignore=lambda folder, names: [n for n in names if n == "models"])
    shutil.copytree(trained, labeled)
    assert semi_round.main([*data, "-w", str(labeled), "--fold", "0", *CPU, *TAKE_ALL, "--step", "select"]) == 0
    predicted = root / "predicted"
    shutil.copytree(phantom_dataset / "labeled_mask", predicted)

    def scored(place: Path) -> int:
        words = ["-p", str(predicted), "-r", str(phantom_dataset / "labeled_mask"), "-o", str(place / "scores.json")]
        return evaluate.main([*words, *data, "--overlays", "3"])

    def exported_labels(place: Path) -> int:
        words = [*data, "-w", str(labeled), "--fold", "0", *CPU, "--export-labels", str(place), "--export-which", "all"]
        return semi_round.main(words)

    def made(place: Path) -> int:
        words = ["--only-data", "--layout", "nnU-Net", "--labeled", "1", "--unlabeled", "1", "--test", "1"]
        return demo.main(["-o", str(place), *words, "--size", "24x24x24", "--workers", "1"])

    plan = ("--preset", "small", "--stages", "one", "--workers", "1")
    learn = ("FINE", "0", *data, *QUICK, *CPU)
    return {
        "plan": Command(lambda place: plan_and_preprocess.main([*data, "-w", str(place), *plan])),
        "train": Command(lambda place: train.main([*learn, "-w", str(place)]), planned, "models/fold_0/FINE"),
        "predict": Command(
            lambda place: predict.main(["-i", str(images), "-o", str(place), *models, *CPU, "--measure"])
        ),
        "evaluate": Command(scored),
        "export": Command(lambda place: export.main([*models, "-o", str(place / "export"), "--no-programs"])),
        "semi_round --export-labels": Command(exported_labels),
        "demo": Command(made),
    }


NAMES = ("plan", "train", "predict", "evaluate", "export", "semi_round --export-labels", "demo")


def file(path: Path, theirs: Path) -> None:
    path.write_bytes(THEIRS)


def link(path: Path, theirs: Path) -> None:
    path.symlink_to(theirs)


def link_to_nowhere(path: Path, theirs: Path) -> None:
    path.symlink_to(theirs.with_name("new"))


def folder(path: Path, theirs: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_bytes(THEIRS)


def outputs(place: Path) -> Iterator[Path]:
    """The files that a command left, one of each kind: numbered and time-stamped ones stand for their like."""
    seen = set()
    for path in sorted(place.rglob("*")):
        relative = path.relative_to(place)
        kind = relative if len(relative.parts) < 3 else Path(*relative.parts[:2])
        if path.is_file() and kind not in seen and not path.name.startswith("events."):
            seen.add(kind)
            yield relative


@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_already_is_not_replaced(
    commands: dict[str, Command], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = commands[name]

    def begin(place: Path) -> None:
        shutil.copytree(command.begin, place) if command.begin else place.mkdir()

    begin(tmp_path / "clean")
    assert command.run(tmp_path / "clean") == 0
    found = list(outputs(tmp_path / "clean" / command.inside))
    assert found
    for number, output in enumerate(found):
        for plant in (file, link, link_to_nowhere, folder):
            place, theirs = (
                tmp_path / f"{number} {plant.__name__}",
                tmp_path / f"{number} {plant.__name__} theirs" / "a",
            )
            begin(place)
            theirs.parent.mkdir()
            theirs.write_bytes(THEIRS)
            planted = place / command.inside / output
            planted.parent.mkdir(parents=True, exist_ok=True)
            plant(planted, theirs)
            capsys.readouterr()
            code = command.run(place)
            said = capsys.readouterr().err
            what = f"{output} was a {plant.__name__}; code {code}: {said}"
            assert code == 2, what
            assert "Traceback" not in said, what
            assert theirs.read_bytes() == THEIRS, what
            assert [path.name for path in theirs.parent.iterdir()] == ["a"], what
            assert planted.is_symlink() == plant.__name__.startswith("link"), what
            kept = planted / "a.txt" if plant is folder else planted
            assert plant is link_to_nowhere or kept.read_bytes() == THEIRS, what
            shutil.rmtree(place)


@pytest.mark.parametrize("part", ["models/fold_0", "models/fold_0/FINE"])
def test_a_restart_does_not_empty_what_a_link_leads_to(
    commands: dict[str, Command],
    trained: Path,
    phantom_dataset: Path,
    tmp_path: Path,
    part: str,
) -> None:
    shutil.copytree(trained, tmp_path / "workspace")
    linked = tmp_path / "workspace" / part
    shutil.move(linked, tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()}
    words = ["FINE", "0", "-d", str(phantom_dataset), "-w", str(tmp_path / "workspace"), *QUICK, *CPU]
    assert train.main([*words, "--restart"]) == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_restart_leaves_what_is_not_of_the_training(
    trained: Path,
    phantom_dataset: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(trained, tmp_path / "workspace")
    notes = Workspace(tmp_path / "workspace").models / "fold_0" / "FINE" / "notes.txt"
    notes.write_bytes(THEIRS)
    words = ["FINE", "0", "-d", str(phantom_dataset), "-w", str(tmp_path / "workspace"), *QUICK, *CPU]
    assert train.main([*words, "--restart", "--no-validation"]) == 0
    assert notes.read_bytes() == THEIRS


@pytest.mark.parametrize("lock", [".lock-preprocessed", ".lock-models-fold_0-FINE", ".lock-rounds-fold_0"])
def test_no_lock_is_written_through_a_link(
    trained: Path,
    phantom_dataset: Path,
    tmp_path: Path,
    lock: str,
) -> None:
    shutil.copytree(trained, tmp_path / "workspace")
    (tmp_path / "theirs").write_bytes(THEIRS)
    (tmp_path / "workspace" / lock).symlink_to(tmp_path / "theirs")
    words = ["-d", str(phantom_dataset), "-w", str(tmp_path / "workspace")]
    main, more = {
        ".lock-preprocessed": (plan_and_preprocess.main, []),
        ".lock-models-fold_0-FINE": (train.main, ["FINE", "0", "--continue"]),
        ".lock-rounds-fold_0": (semi_round.main, ["--fold", "0"]),
    }[lock]
    assert main([*more, *words]) == 2
    assert (tmp_path / "theirs").read_bytes() == THEIRS


def test_new_plans_do_not_follow_a_link(trained: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "workspace")
    (tmp_path / "theirs").write_bytes(THEIRS)
    workspace = Workspace(tmp_path / "workspace")
    plans = workspace.plans.read_bytes()
    workspace.replaced_plans.symlink_to(tmp_path / "theirs")
    words = ["-d", str(phantom_dataset), "-w", str(workspace.root), "--workers", "1", "--plan-only"]
    assert plan_and_preprocess.main([*words, "--replan", "--stages", "two"]) == 0
    assert (tmp_path / "theirs").read_bytes() == THEIRS
    assert workspace.replaced_plans.read_bytes() == plans


def test_a_folder_of_images_is_no_workspace(
    phantom_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantom_dataset, tmp_path / "data")
    images = tmp_path / "data" / "labeled_image"
    before = sorted(path.name for path in images.iterdir())
    assert plan_and_preprocess.main(["-d", str(tmp_path / "data"), "-w", str(images)]) == 2
    assert "this folder is no workspace" in capsys.readouterr().err
    assert sorted(path.name for path in images.iterdir()) == before


@pytest.mark.parametrize("main", [plan_and_preprocess, train, semi_round, predict, export, evaluate, demo])
def test_an_empty_path_is_refused(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("_parser", "training_parser", "prediction_parser", "round_parser")
    parser = next(getattr(main, name) for name in names if hasattr(main, name))()
    flags = [action.option_strings[0] for action in parser._actions if action.type is Path]
    assert flags
    for flag in flags:
        for text in ("", " "):
            assert main.main([flag, text, *(["FINE", "0"] if main is train else [])]) == 2  # type: ignore[attr-defined]
            assert "an empty path is given" in capsys.readouterr().err


def test_the_validation_of_a_training_is_no_output_of_an_evaluation(
    trained: Path, phantom_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = Workspace(trained).models / "fold_0" / "FINE" / "validation" / "summary.json"
    before = summary.read_bytes()
    masks = str(phantom_dataset / "labeled_mask")
    assert evaluate.main(["-p", masks, "-r", masks, "-d", str(phantom_dataset), "-o", str(summary)]) == 2
    assert "summary.json" in capsys.readouterr().err
    assert summary.read_bytes() == before


@pytest.mark.parametrize("name", ["plans.json", "splits.json", "lists/labeled.txt", "integrity.csv"])
def test_records_of_other_programs_make_no_workspace(phantom_dataset: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "there" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"schema_version": 1, "tool": "another"}', encoding="utf-8")
    assert plan_and_preprocess.main(["-d", str(phantom_dataset), "-w", str(tmp_path / "there"), "--check-only"]) == 2
    assert [each for each in (tmp_path / "there").rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize("name", ["data/imagesTr/a.nii.gz", "predictions_supervised/a.nii.gz", "summary_mine.json"])
def test_a_demo_begins_in_no_folder_of_others(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(THEIRS)
    assert demo.main(["-o", str(tmp_path), "--size", "tiny"]) == 2
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
