import shlex
import shutil
from pathlib import Path

import pytest

from flaresemi.cli import round_options, semi_round
from flaresemi.dataset import load_dataset
from flaresemi.io.images import read_grid
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage
from flaresemi.records import load_record
from flaresemi.rounds.state import RoundConfig, load_state
from flaresemi.selection import EXPORT_RECORD, ExportRecord
from flaresemi.workspace import Workspace
from tests.rounds.conftest import trained  # noqa: F401

TAKE_ALL = ["--select", "case", "--best-share", "1.0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def place(trained: Path, phantom_dataset: Path, tmp_path: Path) -> list[str]:  # noqa: F811
    shutil.copytree(trained, tmp_path / "workspace")
    return ["-d", str(phantom_dataset), "-w", str(tmp_path / "workspace"), "--fold", "0"]


def test_a_round_from_the_command_line(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert semi_round.main([*place, "--status"]) == 0
    assert "0 complete rounds" in capsys.readouterr().out
    assert semi_round.main([*place, *TAKE_ALL, "--shard", "0/1"]) == 0
    assert semi_round.main([*place, *TAKE_ALL, "--step", "select"]) == 0
    assert "next comes 'train COARSE'" in capsys.readouterr().out
    assert semi_round.main([*place, *TAKE_ALL]) == 0
    out = capsys.readouterr().out
    assert "mean Dice of the held-out cases: start" in out
    assert "optimistic" in out
    report = Workspace(Path(place[3])).round("0", 1).report
    assert f"report: {report}" in out
    report.unlink()
    assert semi_round.main([*place, "--report"]) == 0
    assert report.is_file()
    assert "next: flaresemi_semi_round" in out
    final = Workspace(Path(place[3])).round("0", 1).model(Stage.FINE).final
    assert load_checkpoint(final).iteration == 3
    verdict = Workspace(Path(place[3])).verdict(("0",))
    verdict.unlink()
    assert semi_round.main([*place, "--status"]) == 0
    assert "1 complete round" in capsys.readouterr().out
    assert not verdict.exists()  # it looks, and does nothing


def test_the_preset_of_flaresemiseg_is_its_rule_from_scratch_and_pastes_nothing(place: list[str]) -> None:
    usual = RoundConfig()
    assert (usual.selection.rule, usual.start) == ("organ", "previous")
    assert usual.mixing.paste_share > 0
    other = ["--select", "organ", "--paste-share", "0.25", "--start", "previous"]
    for words, rule, share, start in (
        ([], "organ", usual.mixing.paste_share, "previous"),
        (["--preset", "flaresemiseg"], "case", 0.0, "scratch"),
        (["--preset", "seed", *other], "organ", 0.25, "previous"),
    ):
        file = Workspace(Path(place[3])).round("0", 1).state
        file.unlink(missing_ok=True)
        assert semi_round.main([*place, "--device", "cpu", "--step", "label", *words]) == 0
        state = load_state(file)
        assert state is not None
        config = state.config
        assert (config.selection.rule, config.mixing.paste_share, config.start) == (rule, share, start)


def test_the_old_name_of_a_preset_works_and_says_the_new_one(caplog: pytest.LogCaptureFixture) -> None:
    parser = round_options.round_parser()
    assert parser.parse_args(["--preset", "seed"]).preset == "flaresemiseg"
    assert "deprecated" in caplog.text and "--preset flaresemiseg" in caplog.text
    assert "{default,flaresemiseg}" in parser.format_help()


def test_the_printed_command_goes_on_with_the_same_choices(
    place: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("--preset", "seed", "--best-share", "1.0", "--paste-share", "0.25", "--tta", "--patience", "3"),
        *("--trainer", "live_teacher", "--trainer-setting", "threshold=0.7", "--trainer-setting", "warm_up=0.5"),
        *("--device", "cpu", "--precision", "fp32", "--gpus", "4", "--max-restarts", "2", "--time-limit", "1h30m"),
    ]
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():  # a rank that --gpus has started
        monkeypatch.setenv(name, value)
    assert semi_round.main([*place, *words, "--shard", "0/1"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    following = shlex.split(line.removeprefix("next: flaresemi_semi_round "))
    parser = round_options.round_parser()
    assert vars(parser.parse_args(following)) == vars(parser.parse_args([*place, *words]))
    # What is exported was made with the choices of the round, whatever is asked for now.
    words = ["--preset", "seed", "--best-share", "1.0", "--tta", "--device", "cpu"]
    assert semi_round.main([*place, *words, "--step", "select"]) == 0
    assert semi_round.main([*place, "--device", "cpu", "--export-labels", str(Path(place[3]) / "out")]) == 0


def test_what_a_complete_round_has_lost_is_made_again(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    once = [*place, *TAKE_ALL, "--rounds", "1"]
    assert semi_round.main(once) == 0
    folder = Workspace(Path(place[3])).round("0", 1)
    lost = {path: path.read_bytes() for path in (folder.scores, folder.selection)}
    final = folder.model(Stage.FINE).final
    trained_at = final.stat().st_mtime_ns
    for path in (*lost, folder.report):
        path.unlink()
        assert semi_round.main(once) == 0
        assert path.is_file()
    assert {path: path.read_bytes() for path in lost} == lost
    assert final.stat().st_mtime_ns == trained_at
    capsys.readouterr()
    assert semi_round.main([*place, "--status"]) == 0
    assert "1 complete round" in capsys.readouterr().out


def test_labels_are_exported_once_they_are_there(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = [*place, *TAKE_ALL, "--fold", "0", "--export-labels", str(tmp_path / "out")]
    assert semi_round.main(export) == 2
    assert "--step select makes them" in capsys.readouterr().err
    assert semi_round.main([*place, *TAKE_ALL, "--fold", "0", "--step", "label"]) == 0
    assert semi_round.main([*export, "--export-which", "all"]) == 0
    assert "1 label map(s) written" in capsys.readouterr().out
    unlabeled = load_dataset(Path(place[1])).unlabeled[0]
    exported = tmp_path / "out" / f"{unlabeled.id}.nii.gz"
    assert read_grid(exported).canonical == read_grid(unlabeled.images[0]).canonical
    assert semi_round.main([*export, "--export-which", "all"]) == 0
    assert "0 label map(s) written" in capsys.readouterr().out
    record = load_record(tmp_path / "out" / EXPORT_RECORD, ExportRecord)
    assert record.selection is None
    assert record.trained_on == load_splits(Workspace(Path(place[3])).splits).fold("0").train
    assert semi_round.main([*place, *TAKE_ALL, "--fold", "0", "--step", "select"]) == 0
    assert semi_round.main(export) == 0  # the same label map, of which it is known now what may be trusted
    selection = load_record(tmp_path / "out" / EXPORT_RECORD, ExportRecord).selection
    assert selection is not None
    assert [case.case_id for case in selection.selected] == [unlabeled.id]


def test_ranks_of_torchrun_may_share_labeling_alone(
    place: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert semi_round.main([*place, "--status"]) == 0
    assert capsys.readouterr().out == ""  # the first rank says it
    assert semi_round.main([*place, *TAKE_ALL, "--fold", "0", "--shard", "torchrun"]) == 0
    assert "next:" not in capsys.readouterr().out  # the first rank says it
    rounds = Workspace(Path(place[3])).round("0", 1)
    assert not rounds.state.exists()  # a shard writes cases and nothing else


def test_several_processes_are_started_by_torchrun(
    place: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.main", commands.append)
    assert semi_round.main([*place, *TAKE_ALL, "--gpus", "4", "--max-restarts=2", "--rounds", "2"]) == 0
    launcher = commands[0].index("flaresemi.cli.semi_round")
    assert {"--nproc-per-node=4", "--max-restarts=2"} <= set(commands[0][:launcher])
    # The ranks know of --gpus, for the command that they say comes next.
    assert commands[0][launcher + 1 :] == [*place, *TAKE_ALL, "--gpus", "4", "--max-restarts=2", "--rounds", "2"]
    assert semi_round.main([*place, "--gpus", "4", "--status"]) == 0  # which is one process's work
    assert "0 complete rounds" in capsys.readouterr().out
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--shard", "4/4"], "no shard 4 of 4"),
        (["--shard", "slurm"], "SLURM_ARRAY_TASK_ variables are not set"),
        (["--shard", "0/2", "--step", "select"], "only labeling can be divided"),
        (["--paste-share", "2"], "must be a number, at least 0 and at most 1: found '2'"),
        (["--volume-factor", "nan"], "must be a number, at least 1"),
        (["--length", "inf"], "must be a number, above 0"),
        (["--min-delta", "nan"], "must be a number, at least 0 and at most 1: found 'nan'"),
        (["--best-share", "2"], "must be a number, at least 0 and at most 1"),
        (["--fold", "1"], "round 0 of fold 1 was not validated"),
        (["--fold", "0", "all"], "stands alone"),
        (["--fold", "all", "--until-converged"], "holds no case out"),
        (["--organ-treshold", "0.5"], "did you mean '--organ-threshold'"),
    ],
)
def test_wrong_options_give_one_clear_message(
    place: list[str], words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert semi_round.main([*place, "--device", "cpu", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error:") == 1
    assert complaint in errors


def test_nothing_good_enough_is_said_and_the_round_stays_usable(
    place: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    strict = [*place, "--device", "cpu", "--precision", "fp32", "--organ-threshold", "1.0", "--volume-factor", "1.0"]
    assert semi_round.main(strict) == 2
    assert "no pseudo-label is good enough" in capsys.readouterr().err
    assert semi_round.main([*place, *TAKE_ALL, "--step", "select"]) == 0
