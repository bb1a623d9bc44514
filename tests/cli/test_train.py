import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flaresemi.cli import train
from flaresemi.compute.distributed import LAUNCHED
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.records import load_record
from flaresemi.training.history import read_history
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import ModelFolder, Workspace
from tests.made_workspace import plan_tiny

QUICK = [
    "--iterations",
    "3",
    "--iterations-per-epoch",
    "2",
    "--validations",
    "1",
    "--loader-workers",
    "0",
    "--device",
    "cpu",
]

#: A rank of a training: of the first start, rank 1 dies after the third step.
DYING = """
import os, signal, sys
from flaresemi.cli import train
from flaresemi.training.trainer import Trainer

optimize = Trainer._optimize

def count(self, loss):
    if (self.ranks.restarts, self.ranks.rank, self.iteration) == (0, 1, 3):
        os.kill(os.getpid(), signal.SIGKILL)
    optimize(self, loss)

Trainer._optimize = count
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def planned(phantom_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name a dataset with two stages, planned and prepared, small enough to train in a test."""
    workspace = tmp_path_factory.mktemp("train") / "workspace"
    return plan_tiny(phantom_dataset, workspace, "two")


def test_the_two_stages_train_in_turn(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace(Path(planned[3]))
    # FINE first: it is validated in the reference's box, and says so.
    assert train.main(["FINE", "0", *planned, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "optimistic" in out
    assert "next: flaresemi_train COARSE 0" in out
    assert train.main(["COARSE", "0", *planned, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "recall of the region" in out
    (line,) = (line for line in out.splitlines() if line.startswith("next: "))
    assert line.startswith("next: flaresemi_train FINE 0") and line.endswith(" --continue")
    # Once COARSE is there, FINE is validated behind it.
    assert train.main(["FINE", "0", *planned, "--continue"]) == 0
    out = capsys.readouterr().out
    assert "optimistic" not in out
    place = f"-d {planned[1]} -w {planned[3]} --fold 0"  # the dataset has an unlabeled case
    assert f"\nnext: flaresemi_semi_round {place}\nor:   flaresemi_predict -i IMAGES -o PREDICTIONS {place}\n" in out
    folder = workspace.model("0", Stage.FINE)
    assert load_checkpoint(folder.final).iteration == 3
    assert "spacing along z" in {norm.quantity for norm in load_checkpoint(folder.final).norms}
    assert (folder.validation / "summary.json").is_file()


def test_an_existing_training_is_not_overwritten(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["COARSE", "1", *planned, *QUICK, "--no-validation"]
    assert train.main(words) == 0
    assert train.main(words) == 2
    assert "--continue goes on with it, --restart discards it" in capsys.readouterr().err
    assert train.main([*words, "--restart"]) == 0
    extended = [word if word != "3" else "5" for word in words]
    assert train.main([*extended, "--continue"]) == 0
    assert load_checkpoint(Workspace(Path(planned[3])).model("1", Stage.COARSE).latest).iteration == 5
    assert train.main([*words, "--continue"]) == 2
    assert "more than the 3 asked for" in capsys.readouterr().err


def test_a_stopped_training_is_not_made_shorter_than_it_is(
    planned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words, folder = ["COARSE", "all", *planned, *QUICK], Workspace(Path(planned[3])).model("all", Stage.COARSE)
    stopped = [word if word != "3" else "10" for word in words]
    assert train.main([*stopped, "--time-limit", "0.01s"]) == 143
    assert train.main([*stopped, "--continue", "--time-limit", "0.01s"]) == 143
    record = folder.run_record.read_bytes()
    assert train.main([*words, "--continue", "--iterations", "1"]) == 2
    assert "this training has 2 iterations already, more than the 1 asked for" in capsys.readouterr().err
    assert not folder.final.exists()
    assert folder.run_record.read_bytes() == record


@pytest.mark.timeout(900)  # five processes import torch, at which a busy machine is slow
def test_a_training_whose_processes_die_goes_on_and_ends_like_any_other(planned: list[str], tmp_path: Path) -> None:
    def words(workspace: str) -> list[str]:
        place = ["-d", planned[1], "-w", str(tmp_path / workspace)]
        length = ["--iterations", "6", "--iterations-per-epoch", "2", "--validations", "0", "--checkpoint-minutes", "0"]
        # Adam's first steps make much of rounding: where a gradient is next to nothing, its sign decides. So do long
        # steps.
        sgd = ["--optimizer", "sgd", "--learning-rate", "0.001", "--precision", "fp32"]
        return ["COARSE", "0", *place, *QUICK, *length, *sgd, "--no-validation"]

    for workspace in ("whole", "killed"):
        shutil.copytree(planned[3], tmp_path / workspace, ignore=shutil.ignore_patterns("models"))
    assert train.main(words("whole")) == 0
    folders = {name: Workspace(tmp_path / name).model("0", Stage.COARSE) for name in ("whole", "killed")}
    # An older training that shall be discarded: once, and not at every start.
    shutil.copytree(folders["whole"].root, folders["killed"].root)
    script = tmp_path / "dying.py"
    script.write_text(DYING, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--monitor-interval",
        "0.1",
        str(script),
        *words("killed"),
        "--restart",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    whole, killed = (read_history(folder.history) for folder in folders.values())
    assert [row["iteration"] for row in killed] == [row["iteration"] for row in whole] == [2, 4, 6]
    for one, other in zip(whole, killed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    record = load_record(folders["killed"].run_record, RunRecord)
    assert len(record.continued) == 1  # the second start went on with the first
    assert record.processes == 2


def test_processes_that_may_die_are_started_by_torchrun(planned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.main", commands.append)
    assert train.main(["FINE", "0", "--gpus", "2", *planned, "--max-restarts=3", "--restart"]) == 0
    launcher = commands[0].index("flaresemi.cli.train")
    assert {"--nproc-per-node=2", "--max-restarts=3"} <= set(commands[0][:launcher])
    # They name the same command when they tell what comes next.
    assert commands[0][launcher + 1 :] == ["FINE", "0", "--gpus", "2", *planned, "--max-restarts=3", "--restart"]
    assert train.main(["FINE", "0", *planned, "--max-restarts", "1"]) == 0
    assert {"--nproc-per-node=1", "--max-restarts=1"} <= set(commands[1])


def test_an_older_torchrun_gets_the_options_that_it_has(planned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.main", commands.append)
    older = argparse.ArgumentParser()
    older.add_argument("--signals-to-handle")
    for parser, expected in ((older, ["--signals-to-handle"]), (argparse.ArgumentParser(), [])):
        monkeypatch.setattr("torch.distributed.run.get_args_parser", lambda parser=parser: parser)
        assert train.main(["FINE", "0", "--gpus", "2", *planned]) == 0
        options = [word.partition("=")[0] for word in commands.pop()]
        assert [name for name in options if name in ("--signals-to-handle", "--shutdown-timeout")] == expected
        assert LAUNCHED not in os.environ, "what this process does next is no part of that launch"


def has_begun(launcher: int, folder: ModelFolder) -> bool:
    return folder.history.exists() and folder.history.stat().st_size > 0


def starts_processes(launcher: int, folder: ModelFolder) -> bool:
    """Whether a process that prepares patches is there: it still imports what it needs."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="utf-8").split()
    return any(b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


@pytest.mark.timeout(600)  # three processes import torch, at which a busy machine is slow
@pytest.mark.parametrize(
    ("processes", "moment", "send", "number"),
    [
        pytest.param(
            ["--gpus", "2"],
            has_begun,
            os.kill,
            signal.SIGUSR1,
            marks=pytest.mark.skipif(
                "--signals-to-handle" not in torchrun.get_args_parser().format_help(),
                reason="this torch's launcher hands SIGUSR1 to nobody",
            ),
        ),
        # To every process, as clusters do it: it is no business of those that prepare patches.
        (["--loader-workers", "2"], has_begun, os.killpg, signal.SIGTERM),
        (["--loader-workers", "2"], starts_processes, os.killpg, signal.SIGUSR1),
    ],
)
def test_a_signal_stops_and_saves(
    planned: list[str],
    tmp_path: Path,
    processes: list[str],
    moment: Callable[[int, ModelFolder], bool],
    send: Callable[[int, int], None],
    number: int,
) -> None:
    shutil.copytree(planned[3], tmp_path / "workspace", ignore=shutil.ignore_patterns("models"))
    # So many that they do not end by themselves in time, and yet do if the signal should not reach them.
    length = ["--iterations", "200", "--checkpoint-minutes", "60"]
    words = ["COARSE", "0", "-d", planned[1], "-w", str(tmp_path / "workspace"), *QUICK, *length]
    command = [sys.executable, "-m", "flaresemi.cli.train", *words, *processes]
    folder = Workspace(tmp_path / "workspace").model("0", Stage.COARSE)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True) as launcher:
        while launcher.poll() is None and not moment(launcher.pid, folder):
            time.sleep(0.02)
        send(launcher.pid, number)
        _, told = launcher.communicate()
    assert launcher.returncode == 143, told.decode()
    assert "the same command with --continue goes on" in told.decode()
    saved = load_checkpoint(folder.latest, with_training_state=True).iteration
    assert saved >= max((row["iteration"] for row in read_history(folder.history)), default=1)


def test_processes_that_fail_have_told_the_reason(
    planned: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*codes: int) -> Callable[[list[str]], None]:
        def launched(words: list[str]) -> None:
            failures = {
                rank: ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="")
                for rank, code in enumerate(codes)
            }
            raise ChildFailedError("train", failures)

        return launched

    killed = "process 1 of this launch was killed (SIGKILL), most likely for lack of memory"
    for codes, expected, told in (
        ((2, 2), 2, ""),
        ((143, 143), 143, "were stopped; the same command with --continue goes on"),
        ((2, -9), 2, killed),
        ((-15, 1), 2, "ended with code 1; the reason stands above"),
    ):
        monkeypatch.setattr("torch.distributed.run.main", fail(*codes))
        assert train.main(["FINE", "0", "--gpus", "2", *planned]) == expected
        printed = capsys.readouterr().err
        assert told in printed
        assert printed.count("error:") == (1 if told and expected == 2 else 0)


def test_a_checkpoint_of_other_plans_is_refused(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["COARSE", "2", *planned, *QUICK, "--no-validation"]) == 0
    latest = Workspace(Path(planned[3])).model("2", Stage.COARSE).latest
    checkpoint = load_checkpoint(latest, with_training_state=True)
    other = dataclasses.replace(checkpoint.plan, margin_mm=33.0)
    save_checkpoint(latest, dataclasses.replace(checkpoint, plan=other))
    assert train.main(["COARSE", "2", *planned, "--continue", "--iterations", "6"]) == 2
    assert "made with other plans" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["FINE", "7"], "fold"),
        (["FINE", "al"], "did you mean 'all'"),
        (["FINE", "0", "--time-budget", "soon"], "not a duration"),
        (["FINE", "0", "--time-limit", "soon"], "not a duration"),
        (["FINE", "0", "--profile", "0"], "at least 1"),
        (["FINE", "0", "--epocks", "3"], "did you mean '--epochs'"),
        (["FINE", "2", "--batch-size", "0"], "at least 1"),
        (["FINE", "0", "--device", "cuda:99"], "is not there"),
        (["FINE", "0", "--mirror-axes", "q"], "does not name axes"),
        (["FINE", "2", "--init-from", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_wrong_options_give_one_clear_message(
    planned: list[str], words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*words, *planned]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error:") == 1
    assert complaint in errors


def test_without_plans_it_names_the_command_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["FINE", "0", "-d", str(tmp_path)]) == 2
    assert "run flaresemi_plan_and_preprocess first" in capsys.readouterr().err


def test_a_misspelt_plan_key_is_named(planned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = json.loads((Path(planned[3]) / "plans.json").read_text(encoding="utf-8"))
    plans["fine"]["pach_zyx"] = plans["fine"].pop("patch_zyx")
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    assert train.main(["FINE", "0", *planned[:2], "-w", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "did you mean 'patch_zyx'?" in errors
    assert "plans.json" in errors


def test_edited_plans_need_new_preparation(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(planned[3]) / "plans.json"
    text = path.read_text(encoding="utf-8")
    plans = json.loads(text)
    plans["fine"]["spacing_zyx_mm"][0] += 1
    try:
        path.write_text(json.dumps(plans))
        assert train.main(["FINE", "1", *planned, *QUICK]) == 2
    finally:
        path.write_text(text)
    assert "not preprocessed for these plans" in capsys.readouterr().err


def test_a_time_limit_stops_and_the_training_goes_on_as_if_it_had_not(
    planned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["COARSE", "2", *planned, *QUICK, "--no-validation"]
    folder = Workspace(Path(planned[3])).model("2", Stage.COARSE)
    histories = []
    assert train.main([*words, "--restart"]) == 0
    histories.append(losses(folder))
    assert train.main([*words, "--restart", "--time-limit", "0.01s"]) == 143
    assert "stopped and saved at iteration 1; the same command with --continue goes on" in capsys.readouterr().err
    assert train.main([*words, "--continue", "--time-limit", "1h"]) == 0
    histories.append(losses(folder))
    assert histories[0] == histories[1]
    # A training that is complete when the limit comes leaves the validation to the next start.
    validated = [word for word in words if word != "--no-validation"]
    assert train.main([*validated, "--continue", "--time-limit", "0.01s"]) == 143
    assert "trained and saved" in capsys.readouterr().err


def losses(folder: ModelFolder) -> list[tuple[object, object]]:
    return [(row["iteration"], row["loss"]) for row in read_history(folder.history)]


def test_a_profile_is_told_and_nothing_is_written(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Workspace(Path(planned[3])).model("2", Stage.FINE).root
    assert train.main(["FINE", "2", *planned, *QUICK, "--profile", "1"]) == 0
    out = capsys.readouterr().out
    assert "waiting for data" in out
    assert "1 steps of" in out
    assert not folder.exists()
    # Beside a training, which even --restart leaves alone then.
    folder.mkdir(parents=True)
    (folder / "checkpoint_latest.pt").write_bytes(b"precious")
    assert train.main(["FINE", "2", *planned, *QUICK, "--restart", "--profile", "1"]) == 0
    assert [path.name for path in folder.iterdir()] == ["checkpoint_latest.pt"]
    shutil.rmtree(folder)


def test_files_that_have_changed_since_they_were_prepared_are_refused(
    planned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the training would go on with what nobody sees any more."""
    data, workspace = tmp_path / "data", tmp_path / "workspace"
    shutil.copytree(planned[1], data)
    shutil.copytree(planned[3], workspace, ignore=shutil.ignore_patterns("models"))
    words = ["FINE", "0", "-d", str(data), "-w", str(workspace), *QUICK, "--no-validation"]
    case_id = json.loads((workspace / "splits.json").read_text(encoding="utf-8"))["folds"][0]["train"][0]
    label = data / "labeled_mask" / f"{case_id}.nii.gz"
    other = next(path for path in sorted(label.parent.iterdir()) if path != label)
    before = label.read_bytes()
    label.write_bytes(other.read_bytes())
    assert train.main(words) == 2
    assert f"1 case(s) have changed since they were prepared: {case_id}" in capsys.readouterr().err
    label.write_bytes(before)
    plans = json.loads((workspace / "plans.json").read_text(encoding="utf-8"))
    first, second = plans["labels"]["labels"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    whole = (workspace / "plans.json").read_text(encoding="utf-8")
    (workspace / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    assert train.main(words) == 2
    assert "plans.json has other labels than dataset.json" in capsys.readouterr().err
    (workspace / "plans.json").write_text(whole, encoding="utf-8")
    assert train.main(words) == 0
    shutil.rmtree(data)  # what is needed is prepared
    assert train.main([*words, "--restart"]) == 0
    assert "whether the dataset has changed since it was prepared is not known" in capsys.readouterr().err
