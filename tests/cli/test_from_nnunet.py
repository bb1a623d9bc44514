"""The commands of docs/from_nnunet.md, one after the other, on a tiny phantom and a made-up model of nnU-Net."""

import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flaresemi.cli import export, plan_and_preprocess, predict, semi_round, train
from flaresemi.io.images import read_label_map
from tests.made_nnunet import write_results
from tests.made_workspace import shrink

DATASET = "Dataset001_Liver"

#: What makes each command fast, and the same on every machine.
QUICK = {
    "flaresemi_plan_and_preprocess": ["--preset", "small", "--stages", "one", "--workers", "1"],
    "flaresemi_predict": ["--device", "cpu", "--engine", "torch"],
    "flaresemi_export": [],
    "flaresemi_train": [
        "-d", DATASET, "--device", "cpu", "--iterations", "3", "--iterations-per-epoch", "3", "--validations", "0",
        "--loader-workers", "0",
    ],
    "flaresemi_semi_round": ["--fold", "0", "--device", "cpu", "--select", "case", "--best-share", "1"],
}  # fmt: skip

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "flaresemi_plan_and_preprocess": plan_and_preprocess.main,
    "flaresemi_predict": predict.main,
    "flaresemi_export": export.main,
    "flaresemi_train": train.main,
    "flaresemi_semi_round": semi_round.main,
}


def _like_the_model(workspace: Path) -> None:
    """Plans a network of the model's layers, so that there is something to start from."""
    shrink(workspace)
    plans = json.loads((workspace / "plans.json").read_text())
    plans["fine"]["network"] |= {
        "features": [4, 6, 8],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "encoder_convs": [1, 2, 2],
        "decoder_convs": [1, 2],
    }
    (workspace / "plans.json").write_text(json.dumps(plans))


def _commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.usefixtures("one_thread")
def test_every_command_of_the_page_runs(
    repository: Path, phantom_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantom_dataset, DATASET)
    shutil.copytree(phantom_dataset / "test_image", "imagesTs")
    sizes = {"spacing": [10.0, 9.0, 9.0], "patch_size": [16, 32, 32]}
    labels = {"background": 0, "liver": 1, "spleen": 2, "tumor": 3}
    model = write_results(Path("nnUNet_results", DATASET), labels=labels, change=sizes)
    with zipfile.ZipFile("liver.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path for path in model.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to("nnUNet_results"))
    commands = _commands(repository / "docs" / "from_nnunet.md")
    assert {words[0] for words in commands} == set(COMMANDS)
    for program, *words in commands:
        assert COMMANDS[program]([*words, *QUICK[program]]) == 0, " ".join([program, *words])
        if program == "flaresemi_plan_and_preprocess":
            _like_the_model(Path(DATASET, "flaresemi"))
    (first,) = Path("predictions").glob("*.nii.gz")
    one, other = (
        read_label_map(folder / first.name) for folder in map(Path, ("predictions", "predictions_of_the_archive"))
    )
    assert (one.array_zyx == other.array_zyx).all()
    assert set(one.array_zyx.ravel().tolist()) <= {0, 1, 2, 3}
    assert Path("liver_for_flaresemi", "description.json").is_file()
    assert Path(DATASET, "flaresemi", "rounds", "fold_0", "round_1", "report.html").is_file()
