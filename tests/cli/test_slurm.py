"""The batch files in docs/slurm: bash takes them, their options are known, and stopped jobs queue again."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from flaresemi.cli import plan_and_preprocess, round_options
from flaresemi.cli.prediction_options import prediction_parser
from flaresemi.cli.training_options import training_parser

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "slurm"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".sbatch", ".sh"))
PARSERS = {
    "flaresemi_train": training_parser(),
    "flaresemi_semi_round": round_options.round_parser(),
    "flaresemi_predict": prediction_parser(),
    "flaresemi_plan_and_preprocess": plan_and_preprocess._parser(),
}
MODULES = {"flaresemi.cli.train": "flaresemi_train", "flaresemi.cli.semi_round": "flaresemi_semi_round"}

#: What the variables of the files might be.
VALUES = {"stage": "FINE", "dataset": "data", "workspace": "work"}


def commands(path: Path) -> list[list[str]]:
    """What a file has srun start, with values for its variables."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ").replace('"$@"', "")
    lines = re.findall(r"^\s*srun (.*?)&?$", text, re.MULTILINE)
    plain = [re.sub(r"\$\(\(.*?\)\)", "29500", line) for line in lines]
    return [shlex.split(re.sub(r"\$(\w+)", lambda found: VALUES.get(found[1], "2"), line)) for line in plain]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_bash_takes_it(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".sbatch"], ids=lambda path: path.name)
def test_every_option_is_known(path: Path) -> None:
    found = commands(path)
    assert found
    for program, *words in found:
        if program == "torchrun":
            launch = get_args_parser().parse_args(words)
            assert launch.module
            program, words = MODULES[launch.training_script], launch.training_script_args
        PARSERS[program].parse_args(words)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment whose SLURM writes down what it is asked for; srun ends with CODE."""
    programs = {
        "srun": 'echo "srun $*" >> "$CALLS"; exit "$CODE"',
        "scontrol": '[ "$1" = show ] && echo node_1 || echo "scontrol $*" >> "$CALLS"',
        "sbatch": 'echo "sbatch $*" >> "$CALLS"; grep -c ^sbatch "$CALLS"',
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "CODE": "0",
        "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_NODELIST": "node_[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }


def calls(environment: dict[str, str], name: str, *words: str) -> tuple[int, list[str]]:
    """Exit code of a file, and what it asked SLURM for."""
    done = subprocess.run(["bash", str(FOLDER / name), *words], env=environment, check=False, capture_output=True)
    return done.returncode, Path(environment["CALLS"]).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["train_fold.sbatch", "label_pool.sbatch", "round.sbatch", "chain.sbatch"])
@pytest.mark.parametrize(("code", "queues_again"), [("0", False), ("2", False), ("143", True)])
def test_a_stopped_job_queues_again(slurm: dict[str, str], name: str, code: str, queues_again: bool) -> None:
    ended, asked = calls(slurm | {"CODE": code}, name, "data", "work", "0", "1")
    assert ended == int(code)
    assert ("scontrol requeue 77" in asked) == queues_again
    stages = [line.split()[2] for line in asked if "flaresemi_train" in line]
    if name == "train_fold.sbatch":
        assert stages == (["COARSE", "FINE"] if code == "0" else ["COARSE"])


@pytest.mark.parametrize("name", ["train_nodes.sbatch", "round_nodes.sbatch"])
def test_a_stopped_job_on_several_nodes_queues_again_after_torchrun_has_ended(slurm: dict[str, str], name: str) -> None:
    srun = Path(slurm["CALLS"]).with_name("srun")
    words = (name, "data", "work", "FINE" if name.startswith("train") else "0", "0")
    assert calls(slurm | {"CODE": "1"}, *words)[0] == 1
    saves = "trap 'sleep 0.2; echo saved >> \"$CALLS\"; exit 1' TERM; kill -TERM $PPID; sleep 3 & wait"
    srun.write_text(f"#!/bin/sh\n{saves}\n", encoding="utf-8")
    ended, asked = calls(slurm, *words)
    assert ended == 143
    assert asked[-2:] == ["saved", "scontrol requeue 77"]


def test_the_jobs_of_a_chain_wait_for_each_other(slurm: dict[str, str]) -> None:
    ended, asked = calls(slurm, "self_training.sh", "data", "work", "3", "2")
    assert ended == 0
    submitted = [re.findall(r"(?:--array=\S+|after\w+:\d+|\w+\.sbatch.*)", line) for line in asked]
    assert submitted == [
        ["--array=3", "train_fold.sbatch data work"],
        ["afterok:1", "label_pool.sbatch data work 3"],
        ["afterany:2", "round.sbatch data work 3 1"],
        ["afterok:3", "label_pool.sbatch data work 3"],
        ["afterany:4", "round.sbatch data work 3 2"],
    ]


def test_the_chains_of_several_folds_are_labeled_run_and_judged(slurm: dict[str, str]) -> None:
    ended, asked = calls(slurm, "chains.sh", "data", "work", "0 2", "1")
    assert ended == 0
    submitted = [re.findall(r"(?:--array=\S+|after\w+:\d+|\w+\.sbatch.*)", line) for line in asked]
    assert submitted == [
        ["--array=0,2", "chain.sbatch data work 0 2 1 --step label"],
        ["--array=0,2", "afterok:1", "chain.sbatch data work 0 2 1"],
        ["afterok:2", "round.sbatch data work 0 2 1"],
    ]
    ended, asked = calls(slurm, "chain.sbatch", "data", "work", "0 3", "1", "--step", "label")
    assert asked[-1] == "srun flaresemi_semi_round -d data -w work --fold 0 3 --chain 3 --rounds 1 --step label"
