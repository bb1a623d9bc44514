"""What a step stands on is exchanged before the next: that is refused, or made anew, and never used without a word."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.cli import plan_and_preprocess, predict, train
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from tests.faults.conftest import PLAN, PREDICT, TRAIN, Whole

pytestmark = pytest.mark.usefixtures("one_thread")


class Place:
    """A copy of the dataset and of the trained workspace."""

    def __init__(self, whole: Whole, root: Path) -> None:
        self.data = Path(shutil.copytree(whole.data, root / "data"))
        self.workspace = Path(shutil.copytree(whole.trained, root / "workspace"))
        self.model = self.workspace / "models" / "fold_0" / "FINE"
        fold = self.splits["folds"][0]
        self.training, self.held_out = fold["train"][0], fold["validation"][0]
        self.out = root / "out"

    @property
    def splits(self) -> dict:
        return json.loads((self.workspace / "splits.json").read_text(encoding="utf-8"))

    def edit(self, name: str, change: Callable[[dict], object]) -> None:
        path = self.workspace / name
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    def run(self, command: str, *words: str) -> int:
        place = ["-d", str(self.data), "-w", str(self.workspace)]
        if command == "plan":
            return plan_and_preprocess.main([*PLAN[1:], *place, *words])
        if command == "predict":
            images = ["-i", str(self.data / "test_image"), "-m", str(self.workspace / "models"), "-o", str(self.out)]
            return predict.main([*PREDICT[1:], *images, *words])
        return train.main([*TRAIN[1:], *place, *words])


def other_label_map(place: Place, case_id: str) -> None:
    path = place.data / "labeled_mask" / f"{case_id}.nii.gz"
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    array[array == 1] = 2
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path), True)


def other_image(place: Place, folder: str, case_id: str) -> None:
    path = place.data / folder / f"{case_id}_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(np.flip(sitk.GetArrayFromImage(image), 1))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path), True)


def exchange_folds(place: Place) -> None:
    place.edit("splits.json", lambda content: content["folds"].reverse())


def exchange_names(place: Place) -> None:
    def change(content: dict) -> None:
        first, second = content["labels"]["labels"][:2]
        first["name"], second["name"] = second["name"], first["name"]

    place.edit("plans.json", change)


def prepare_again(place: Place) -> None:
    """A training case is corrected and prepared again."""
    other_label_map(place, place.training)
    assert place.run("plan", "--keep-plans") == 0


def edit_prepared(place: Place) -> None:
    path = place.workspace / "preprocessed" / "FINE" / place.training / "image.npy"
    content = bytearray(path.read_bytes())
    content[-2:] = b"\0\0" if content[-2:] != b"\0\0" else b"\1\1"
    path.write_bytes(content)


CHANGES: dict[str, tuple[Callable[[Place], None], str]] = {
    "label map": (lambda place: other_label_map(place, place.training), "have changed since they were prepared"),
    "held-out label map": (lambda place: other_label_map(place, place.held_out), "have changed since they were prep"),
    "image": (lambda place: other_image(place, "labeled_image", place.training), "have changed since they were prep"),
    "prepared image": (edit_prepared, "is not what was written here"),
    "folds": (exchange_folds, "was started with other folds"),
    "organs": (exchange_names, "plans.json has other labels than dataset.json"),
    "prepared again": (prepare_again, "case(s) that this training began with are others now"),
}


@pytest.mark.parametrize("longer", [[], ["--iterations", "8"]])
@pytest.mark.parametrize("loses_record", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_a_training_that_goes_on(
    name: str, loses_record: bool, longer: list[str], whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(whole, tmp_path)
    change, told = CHANGES[name]
    change(place)
    if loses_record:
        (place.model / "run.json").unlink()
    before = (place.model / "snapshot_100.pt").read_bytes()
    assert place.run("train", "--continue", *longer) == 2
    assert told in capfd.readouterr().err
    assert (place.model / "snapshot_100.pt").read_bytes() == before


def test_a_corrected_held_out_case_is_judged_by_again(
    whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(whole, tmp_path)
    summary = place.model / "validation" / "summary.json"
    before = summary.read_bytes()
    other_label_map(place, place.held_out)
    assert place.run("plan", "--keep-plans") == 0
    weights = load_checkpoint(place.model / "snapshot_100.pt").weights_hash
    assert place.run("train", "--continue") == 0
    assert summary.read_bytes() != before
    assert load_checkpoint(place.model / "snapshot_100.pt").weights_hash == weights


def test_an_edited_label_map_of_the_validation_is_segmented_again(whole: Whole, tmp_path: Path) -> None:
    place = Place(whole, tmp_path)
    label_map = place.model / "validation" / f"{place.held_out}.nii.gz"
    before = sitk.GetArrayFromImage(sitk.ReadImage(str(label_map)))
    other = sitk.GetImageFromArray(np.zeros_like(before))
    other.CopyInformation(sitk.ReadImage(str(label_map)))
    sitk.WriteImage(other, str(label_map), True)
    assert place.run("train", "--continue") == 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(label_map))), before)


OTHERWISE = ["--seed=5", "--learning-rate=0.1", "--batch-size=1", "--augmentation=none", "--mirror-axes=none",
             "--optimizer=sgd", "--ema-decay=0", "--foreground-share=1", "--no-deep-supervision"]  # fmt: skip


@pytest.mark.parametrize("option", OTHERWISE)
def test_options_that_would_rewrite_what_a_training_was(
    option: str, whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(whole, tmp_path)
    record = (place.model / "run.json").read_bytes()
    assert place.run("train", "--continue", "--iterations", "8", "--no-validation", option) == 2
    assert "this training began with" in capfd.readouterr().err
    assert (place.model / "run.json").read_bytes() == record


def test_what_may_change_is_noted_with_its_step(whole: Whole, tmp_path: Path) -> None:
    place = Place(whole, tmp_path)
    words = ["--continue", "--no-validation", "--iterations", "12", "--loader-workers", "1"]
    assert place.run("train", *words) == 0
    record = json.loads((place.model / "run.json").read_text(encoding="utf-8"))
    found = {change["name"]: (change["iteration"], change["before"], change["after"]) for change in record["changes"]}
    assert found == {
        "config.iterations": (6, "6", "12"),
        "config.loader_workers": (6, "0", "1"),
        "recipe.total_iterations": (6, "6", "12"),
    }
    assert record["config"]["iterations"] == record["recipe"]["total_iterations"] == 12
    assert place.run("train", *words) == 0
    assert json.loads((place.model / "run.json").read_text(encoding="utf-8"))["changes"] == record["changes"]


def other_weights(place: Place) -> None:
    path = place.model / "snapshot_100.pt"
    checkpoint = load_checkpoint(path)
    next(iter(checkpoint.weights.values())).mul_(0.5)
    save_checkpoint(path, checkpoint)


PREDICTED: dict[str, tuple[Callable[[Place], None], list[str]]] = {
    "nothing": (lambda place: None, []),
    "image": (lambda place: other_image(place, "test_image", one_test_case(place)), []),
    "weights": (other_weights, []),
    "options": (lambda place: None, ["--step", "0.9"]),
}


def one_test_case(place: Place) -> str:
    return next((place.data / "test_image").iterdir()).name.removesuffix("_0000.nii.gz")


@pytest.mark.parametrize("name", PREDICTED)
def test_a_prediction_that_goes_on(name: str, whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = Place(whole, tmp_path)
    change, words = PREDICTED[name]
    assert place.run("predict") == 0
    capfd.readouterr()
    change(place)
    assert place.run("predict", "--continue", *words) == 0
    said = capfd.readouterr().err
    if name == "nothing":
        assert "1 of 1 cases have their label map already" in said
    else:
        assert "1 label map(s) were predicted by other weights, with other options or from other images" in said
        assert "1 label map(s) written" in said
    anew = place.out.rename(tmp_path / "gone_on")
    assert place.run("predict", *words) == 0
    for path in place.out.glob("*.nii.gz"):
        assert path.read_bytes() == (anew / path.name).read_bytes()
