"""The demo's own part: data, the order of the commands, going on, and what it shows at the end.

The commands themselves are replaced, but for the last test, which runs them all for a few steps.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from flaresemi.cli import demo
from flaresemi.cli.before_after import told
from flaresemi.dataset import load_dataset
from flaresemi.evaluation.flare import OrganMetrics
from flaresemi.evaluation.folders import CaseScores
from flaresemi.evaluation.summary import Summary, load_summary, save_summary, summarize
from flaresemi.io.images import read_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.records import save_record
from flaresemi.reporting.overlay import is_overlay
from flaresemi.rounds.chain import ChainState
from flaresemi.rounds.stopping import Verdict
from flaresemi.workspace import Workspace

SMALL = ["--labeled", "1", "--unlabeled", "1", "--test", "1", "--size", "24x32x32", "--workers", "1"]


class Commands:
    """Stands in for the other commands and notes how they were called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self.codes: dict[str, int] = {}  # by command; 0 where not set
        for name in ("plan_and_preprocess", "train", "predict", "evaluate", "semi_round"):
            monkeypatch.setattr(getattr(demo, name), "main", self._replacement(name))

    def _replacement(self, name: str) -> Callable[[Sequence[str]], int]:
        def main(words: Sequence[str]) -> int:
            self.calls.append([name, *words])
            return self.codes.get(name, 0)

        return main


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(monkeypatch)


@pytest.mark.parametrize("layout", ["flaresemi", "nnU-Net"])
def test_only_data_is_a_dataset_that_loads(
    layout: str, tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture
) -> None:
    assert demo.main(["-o", str(tmp_path / "demo"), "--only-data", "--layout", layout, *SMALL]) == 0
    dataset = load_dataset(tmp_path / "demo" / "data")
    assert [len(group) for group in (dataset.labeled, dataset.unlabeled, dataset.test)] == [1, 1, 1]
    assert dataset.labels.count == 13
    assert "next: flaresemi_plan_and_preprocess" in capsys.readouterr().out
    assert commands.calls == []


def test_the_main_job_runs_in_order_and_shows_each_command(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture
) -> None:
    assert demo.main(["-o", str(tmp_path), *SMALL]) == 0
    names = [(name, words[0]) if name == "train" else name for name, *words in commands.calls]
    trained = [("train", "COARSE"), ("train", "FINE")]
    assert names == ["plan_and_preprocess", *trained, "predict", "evaluate", "semi_round", "predict", "evaluate"]
    shown = capsys.readouterr().out
    for name, *words in commands.calls:
        assert f"$ flaresemi_{name} {' '.join(words)}\n" in shown


def test_without_unlabeled_cases_there_is_no_round(tmp_path: Path, commands: Commands) -> None:
    assert demo.main(["-o", str(tmp_path), *SMALL, "--unlabeled", "0"]) == 0
    assert [name for name, *_ in commands.calls][-2:] == ["predict", "evaluate"]
    assert "--overlays" in commands.calls[-1]  # the only pictures, then
    assert "semi_round" not in [name for name, *_ in commands.calls]


def made_summary(path: Path, cases: dict[str, dict[str, float]]) -> Summary:
    scored = [
        CaseScores(
            case_id=case_id,
            organs={
                organ: OrganMetrics(dice=dice, nsd=dice, hd95_mm=1.0, reference_ml=1.0, prediction_ml=1.0)
                for organ, dice in organs.items()
            },
        )
        for case_id, organs in cases.items()
    ]
    labels = LabelSet(labels=tuple(Label(name=n, value=i) for i, n in enumerate(next(iter(cases.values())), start=1)))
    save_summary(path, summarize(scored, labels, default_tolerance_mm=2.0))
    return load_summary(path)


def test_what_was_gained_and_lost_is_told_in_plain_words(tmp_path: Path) -> None:
    organs = {"liver": 0.9, "spleen": 0.5, "aorta": 0.7}
    before = made_summary(tmp_path / "before.json", {"a": organs, "b": organs})
    after = made_summary(tmp_path / "after.json", {"a": organs | {"spleen": 0.8}, "b": organs | {"aorta": 0.6}})
    what, rose, gained, lost = told(before, after).replace(" (", "\n(").splitlines()
    assert what == "The round of self-training raised the mean Dice of the 2 test scans from 0.700 to 0.733"
    assert rose == "(+0.033; it rose in 1 of 2)."
    assert gained == "Most was gained in spleen 0.50 -> 0.65."
    assert lost == "Most was lost in aorta 0.70 -> 0.65."
    assert told(after, before).splitlines()[0].startswith("The round of self-training lowered the mean Dice")
    assert told(before, before).splitlines()[1:] == ["No organ gained 0.01 or more.", "No organ lost 0.01 or more."]


def test_every_test_case_is_drawn_before_and_after_the_round(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["-o", str(tmp_path), *SMALL, "--test", "2"]
    assert demo.main([*arguments, "--only-data"]) == 0
    truth = tmp_path / "data" / "test_mask"
    names = sorted(path.name.removesuffix(".nii.gz") for path in truth.iterdir())
    for name, dice in (("supervised", 0.6), ("after_round_1", 0.7)):
        shutil.copytree(truth, tmp_path / f"predictions_{name}")
        made_summary(tmp_path / f"summary_{name}.json", {case: {"liver": dice, "spleen": 0.5} for case in names})
    verdict = Verdict(best_round=1, stop=False, why="round 1: it rose")
    chain = ChainState(folds=("0",), rounds=1, mean_dice=(0.5, 0.6), verdict=verdict)
    save_record(Workspace(tmp_path / "data" / "flaresemi").verdict(("0",)), chain)
    assert demo.main(arguments) == 0
    shown = capsys.readouterr().out.split("\ndone in ")[1]
    assert "raised the mean Dice of the 2 test scans from 0.550 to 0.600" in shown
    assert "labeled cases held out: round 1: it rose." in shown
    pictures = [Path(word) for word in shown.split() if word.endswith(".png")]
    assert [picture.stem for picture in pictures] == names
    assert all(is_overlay(picture) for picture in pictures)
    assert not any("--overlays" in call for call in commands.calls)
    pictures[0].write_text("mine")
    assert demo.main(arguments) == 2  # somebody else's file is not replaced
    assert pictures[0].read_text() == "mine"


def test_a_second_call_makes_no_data_anew(tmp_path: Path, commands: Commands) -> None:
    arguments = ["-o", str(tmp_path), "--only-data", *SMALL]
    assert demo.main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.nii.gz")}
    assert demo.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.nii.gz")} == before


def test_other_options_in_the_same_folder_are_refused(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture
) -> None:
    assert demo.main(["-o", str(tmp_path), "--only-data", *SMALL]) == 0
    assert demo.main(["-o", str(tmp_path), "--only-data", *SMALL, "--seed", "5"]) == 2
    assert "seed 0, not 5" in capsys.readouterr().err


def test_a_command_that_fails_ends_the_demo_with_its_code(tmp_path: Path, commands: Commands) -> None:
    commands.codes["train"] = 2
    assert demo.main(["-o", str(tmp_path), *SMALL]) == 2
    assert [name for name, *_ in commands.calls] == ["plan_and_preprocess", "train"]


def test_a_seed_decides_the_data(tmp_path: Path, commands: Commands) -> None:
    images = []
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert demo.main(["-o", str(tmp_path / folder), "--only-data", *SMALL, "--seed", seed]) == 0
        images.append(read_label_map(next((tmp_path / folder / "data" / "labeled_mask").iterdir())).array_zyx)
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_a_demo_without_test_cases_is_refused_before_anything_is_made(tmp_path: Path, commands: Commands) -> None:
    assert demo.main(["-o", str(tmp_path / "demo"), "--test", "0"]) == 2
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("size", ["huge", "3x4", "axbxc"])
def test_a_size_that_means_nothing_is_refused(size: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert demo.main(["-o", str(tmp_path), "--size", size]) == 2
    assert "72x112x112" in capsys.readouterr().err


def test_the_supervised_job_runs_and_a_second_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train = demo.train.main
    # Starting a loader's process takes longer than these trainings.
    monkeypatch.setattr(demo.train, "main", lambda words: train([*words, "--loader-workers", "0"]))
    arguments = [
        "-o",
        str(tmp_path),
        "--labeled",
        "3",
        "--unlabeled",
        "0",
        "--test",
        "1",
        "--size",
        "40x48x48",
        "--coarse-time",
        "4s",
        "--fine-time",
        "4s",
        "--device",
        "cpu",
        "--workers",
        "1",
        "--quiet",
    ]
    assert demo.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "liver" in shown  # the table
    pictures = [Path(word) for word in shown.split() if word.endswith(".png")]
    assert pictures and all(picture.is_file() for picture in pictures)
    assert len(list(tmp_path.rglob("snapshot_100.pt"))) == 2
    histories = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("history.jsonl")}
    assert demo.main(arguments) == 0  # nothing is trained again
    assert {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("history.jsonl")} == histories
