"""The whole comparison, on networks that see one organ everywhere."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaresemi.cli import evaluate, export, predict
from flaresemi.comparing.candidates import find_candidate, find_candidates
from flaresemi.files import content_hash
from flaresemi.inference.api import predict as predict_one
from flaresemi.inference.choice import load_choice
from flaresemi.io.images import read_label_map, write_label_map
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.records import load_record, save_record
from flaresemi.tables import read_table
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import Workspace

Find = Callable[..., int]

FIXED = ("--engine", "torch", "--precision", "fp32")


def change(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def run_file(workspace: str, fold: str = "0", stage: Stage = Stage.FINE) -> Path:
    return Workspace(Path(workspace)).model(fold, stage).run_record


def labels_in(path: Path) -> set[int]:
    return {*np.unique(read_label_map(path).array_zyx).tolist()}


def test_a_usual_workspace_is_called_as_its_dataset(pair: Path) -> None:
    shutil.copytree("one", "Task_Hearts/flaresemi")
    assert find_candidate(Path("Task_Hearts/flaresemi/models")).name == "Task_Hearts"
    first, second = find_candidates([Path("Task_Hearts/flaresemi"), Path("two/models")])
    assert (first.name, second.name) == ("Task_Hearts", "two")


def test_the_choice_predicts_what_was_compared(pair: Path, find: Find, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree("best")
    assert find() == 0
    printed = capsys.readouterr().out
    assert "2 held-out cases of fold 0, 1" in printed
    assert "next: flaresemi_predict -m best" in printed
    choice = load_choice(pair / "best" / "best.json")
    assert choice.chosen == ("one",)  # a liver everywhere scores more than a kidney everywhere
    assert [model.stages for model in choice.models] == [1, 2]
    assert {each.members for each in choice.results} == {("one",), ("two",), ("one", "two")}
    page = (pair / "best" / "best.html").read_text(encoding="utf-8")
    assert choice.why[0] in page and "<td>1 + 2</td>" in page
    columns, rows = read_table(pair / "best" / "best.csv")
    assert columns[:4] == ("configuration", "case", "organ", "dice")
    assert len(rows) == 3 * 2 * 13
    for case, fold in held_out():
        image = next((pair / "data" / "labeled_image").glob(f"{case}_0000*"))
        for members in ("one", "two", "one+two"):
            predicted = pair / "best" / "predictions" / members / f"{case}.nii.gz"
            change(pair / "best" / "best.json", chosen=members.split("+"), folds=[fold])
            cut_networks(pair / "best" / "best.json", fold)
            out = Path("again") / members / f"{case}.nii.gz"
            assert predict.main(["-m", "best", "-i", str(image), "-o", str(out), *FIXED]) == 0
            assert np.array_equal(read_label_map(out).array_zyx, read_label_map(predicted).array_zyx)
        restore_networks(pair / "best" / "best.json", choice)
    assert labels_in(pair / "best" / "predictions" / "one" / f"{case}.nii.gz") == {0, 1}


def held_out() -> list[tuple[str, str]]:
    """The held-out cases of both folds, and which."""
    return [
        (case, fold)
        for fold in ("0", "1")
        for case in json.loads(run_file("one", fold).read_text(encoding="utf-8"))["validation_cases"]
    ]


def cut_networks(record: Path, fold: str) -> None:
    """Leaves the networks of one fold alone in a record."""
    content = json.loads(record.read_text(encoding="utf-8"))
    for model in content["models"]:
        model["networks"] = [name for name in model["networks"] if name.split()[1] == fold]
    record.write_text(json.dumps(content), encoding="utf-8")


def restore_networks(record: Path, choice: object) -> None:
    save_record(record, choice)


def test_several_folds_and_plans_work_together(pair: Path) -> None:
    change(pair / "best" / "best.json", chosen=["one", "two"])
    image = next((pair / "data" / "test_image").glob("*"))
    label_map = predict_one(image, pair / "best", engine="torch", precision="fp32")
    assert {*np.unique(label_map).tolist()} <= {0, 1, 2}
    words = ["-m", "best/best.json", "-i", "data/test_image", "-o", "out", *FIXED]
    assert predict.main(words) == 0
    (written,) = (path for path in Path("out").iterdir() if not path.name.startswith("."))
    assert np.array_equal(read_label_map(written).array_zyx, read_label_map(written).source.to_canonical(label_map))
    before = written.stat().st_mtime_ns
    assert predict.main([*words, "--continue"]) == 0
    assert written.stat().st_mtime_ns == before
    assert evaluate.main(["-p", "out", "-r", "out", "-o", "s.json", "-m", "best"]) == 0


def test_a_second_start_predicts_only_what_is_missing(pair: Path, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    from flaresemi.inference.cascade import Segmenter

    calls: list[str] = []
    scores = Segmenter.scores

    def counted(self: Segmenter, image: object, **options: object) -> object:
        calls.append(str(options["name"]))
        return scores(self, image, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmenter, "scores", counted)
    (first, _), (second, _) = held_out()
    assert find() == 0
    before = content_hash(pair / "best" / "best.json")
    assert find() == 0
    assert calls == []  # all of it was there, in a folder that has been moved
    assert content_hash(pair / "best" / "best.json") == before
    (pair / "best" / "predictions" / "two" / f"{first}.nii.gz").unlink()
    assert find() == 0
    assert calls == [first]  # of the two alone, as the average is there
    calls.clear()
    (pair / "best" / "scores" / "one+two" / f"{second}.json").write_text("{", encoding="utf-8")
    assert find() == 2  # not ours any more, as far as anybody can tell
    (pair / "best" / "scores" / "one+two" / f"{second}.json").unlink()
    assert find() == 0
    assert calls == [second, second]


def test_times_of_two_machines_are_not_compared(pair: Path, find: Find, capsys: pytest.CaptureFixture) -> None:
    def machines() -> list[str]:
        return [
            json.loads(path.read_text())["timed_on"] for path in sorted((pair / "best" / "scores").glob("*/*.json"))
        ]

    here = machines()
    (fact,) = {*here}
    assert fact.endswith("threads") or "OpenVINO" in fact
    for path in (pair / "best" / "scores").glob("*/*.json"):
        change(path, timed_on="elsewhere", seconds={"fine": 1000.0})
    assert find() == 0
    assert {*machines()} == {"elsewhere"}  # all of one machine can be compared
    next((pair / "best" / "scores" / "one").glob("*.json")).unlink()
    capsys.readouterr()
    assert find() == 0
    assert "timed on another machine" in capsys.readouterr().err
    assert machines() == here
    assert all(each["seconds"] < 1000 for each in json.loads((pair / "best" / "best.json").read_text())["results"])


def test_other_weights_are_compared_anew_and_never_predict_as_those_that_were(
    pair: Path, find: Find, capsys: pytest.CaptureFixture
) -> None:
    path = Workspace(pair / "one").model("0", Stage.FINE).final
    checkpoint = load_checkpoint(path)
    weights = {name: tensor + 0.25 if name == "heads.0.bias" else tensor for name, tensor in checkpoint.weights.items()}
    save_checkpoint(path, dataclasses.replace(checkpoint, weights=weights))
    assert predict.main(["-m", "best", "-i", "data/test_image", "-o", "out", *FIXED]) == 2
    assert "the models of 'one' are others than those that were compared" in capsys.readouterr().err
    assert find() == 0
    assert predict.main(["-m", "best", "-i", "data/test_image", "-o", "out", *FIXED]) == 0


def test_one_winner_is_exported_and_several_are_refused(pair: Path, capsys: pytest.CaptureFixture) -> None:
    assert export.main(["-m", "best", "-o", "exported", "--no-programs"]) == 0
    for model, out in (("best", "a"), ("exported", "b")):
        assert predict.main(["-m", model, "-i", "data/test_image", "-o", out, *FIXED]) == 0
    names = [path.name for path in Path("a").iterdir() if not path.name.startswith(".")]
    assert names and all(content_hash(Path("a") / name) == content_hash(Path("b") / name) for name in names)
    change(pair / "best" / "best.json", chosen=["one", "two"])
    assert export.main(["-m", "best", "-o", "both", "--no-programs"]) == 2
    said = capsys.readouterr().err
    assert "models of 2 plans were chosen to be averaged" in said
    assert "name one of them with -m: one/models, two/models" in said
    assert predict.main(["-m", "best", "-i", "data/test_image", "-o", "c", "--fold", "0"]) == 2
    assert "leave --fold, --checkpoint and --coarse out" in capsys.readouterr().err
    assert predict.main(["-m", "best", "-i", "data/test_image", "-o", "c", "--reliability"]) == 2
    assert "several models are averaged" in capsys.readouterr().err


def test_record_and_models_may_be_moved_together(pair: Path, tmp_path: Path) -> None:
    os.rename(pair, tmp_path / "moved")
    os.chdir(tmp_path / "moved")
    assert predict.main(["-m", "best", "-i", "data/test_image", "-o", "out", *FIXED]) == 0
    shutil.rmtree("one")
    models = json.loads(Path("best", "best.json").read_text(encoding="utf-8"))["models"]
    change(Path("best", "best.json"), models=[{**model, "folder": "/nowhere"} for model in models])
    assert predict.main(["-m", "best", "-i", "data/test_image", "-o", "other", *FIXED]) == 2


def refused(find: Find, capsys: pytest.CaptureFixture, what: str, *words: str, **models: tuple[str, ...]) -> str:
    """Checks that nothing is compared, since something is wrong that the message names."""
    assert find("-o", "none", *words, **models) == 2
    said = capsys.readouterr().err
    assert what in said
    assert not Path("none").exists()
    return said


def test_what_cannot_be_compared_is_refused(pair: Path, find: Find, capsys: pytest.CaptureFixture) -> None:
    refused(find, capsys, "needs at least two models", models=("one",))
    refused(find, capsys, "needs at least two models", models=("one", "one/models"))
    refused(find, capsys, "holds nothing out to compare on", "--fold", "all")
    said = refused(find, capsys, "not every model has the same finished folds", "--fold", "0", "2")
    assert "'one' 0, 1; 'two' 0, 1" in said and "--fold 0 1" in said
    shutil.rmtree("two/models/fold_1/COARSE")
    refused(find, capsys, "COARSE of fold 1 of 'two' is not finished")
    shutil.rmtree("two/models/fold_1")
    said = refused(find, capsys, "'one' 0, 1; 'two' 0")
    assert "finish fold 1 of 'two', or compare what all have: --fold 0" in said
    os.rename("two/models/fold_0", "two/models/fold_all")
    refused(find, capsys, "'two' has fold 'all' alone, which holds nothing out")
    os.remove("two/models/fold_all/FINE/snapshot_100.pt")
    refused(find, capsys, "'two' has no finished fold")
    shutil.rmtree("two/models/fold_all")
    refused(find, capsys, "no trained model in this folder")


def test_other_cases_are_refused(pair: Path, find: Find, capsys: pytest.CaptureFixture) -> None:
    path = run_file("two")
    record = load_record(path, RunRecord)
    (held,) = record.validation_cases
    assert record.made_from is not None

    def become(**changes: object) -> None:
        save_record(path, dataclasses.replace(record, **changes))  # type: ignore[arg-type]

    become(training_cases=(*record.training_cases, held))
    refused(find, capsys, f"FINE of fold 0 of 'two' was trained on cases that would judge it: {held}")
    become(validation_cases=("stranger",))
    said = refused(find, capsys, "fold 0 holds out other cases in 'one' than in 'two'")
    assert f"{held} in 'one' only" in said and "stranger in 'two' only" in said
    training = dict(list(record.made_from.training.items())[:1])
    become(made_from=dataclasses.replace(record.made_from, training=training))
    refused(find, capsys, "fold 0 trains on other cases in 'one' than in 'two'")
    training = {**record.made_from.training, record.training_cases[0]: "f" * 16}
    become(made_from=dataclasses.replace(record.made_from, training=training))
    refused(find, capsys, f"were trained, images or labels: {record.training_cases[0]}")
    path.unlink()
    refused(find, capsys, "its record is missing")
    become()
    coarse = run_file("two", stage=Stage.COARSE)
    seen = load_record(coarse, RunRecord)
    save_record(coarse, dataclasses.replace(seen, training_cases=(*seen.training_cases, held)))
    refused(find, capsys, "COARSE of fold 0 of 'two' was trained on cases that would judge it")


def test_other_organs_and_other_datasets_are_refused(pair: Path, find: Find, capsys: pytest.CaptureFixture) -> None:
    for fold in ("0", "1"):
        for stage in Stage:
            path = Workspace(pair / "two").model(fold, stage).final
            checkpoint = load_checkpoint(path)
            first, *others = checkpoint.labels.labels
            labels = dataclasses.replace(checkpoint.labels, labels=(dataclasses.replace(first, name="hepar"), *others))
            save_checkpoint(path, dataclasses.replace(checkpoint, labels=labels))
    refused(find, capsys, "have other organs, names, values or sides")
    shutil.rmtree("two")
    shutil.copytree("one", "two")
    other = Path("other")
    shutil.copytree("data", other)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (other / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    refused(find, capsys, "this dataset has other organs or channels than 'one'", "-d", "other")
    (other / "dataset.json").unlink()
    case = held_out()[0][0]
    for path in [*other.glob(f"labeled_*/{case}*")]:
        path.unlink()
    refused(find, capsys, f"no case '{case}' in the dataset", "-d", "other")


def test_files_of_others_are_not_replaced(pair: Path, find: Find, capsys: pytest.CaptureFixture) -> None:
    corrected = pair / "best" / "predictions" / "one" / f"{held_out()[0][0]}.nii.gz"
    found = read_label_map(corrected)
    write_label_map(corrected, np.zeros_like(found.array_zyx), found.source)
    assert find("--no-averages") == 2
    assert "were changed since" in capsys.readouterr().err
    shutil.rmtree("best")
    Path("best").mkdir()
    Path("best", "best.html").write_text("mine", encoding="utf-8")
    assert find() == 2
    assert "flaresemi_find_best did not write" in capsys.readouterr().err
    assert os.listdir("best") == ["best.html"]
