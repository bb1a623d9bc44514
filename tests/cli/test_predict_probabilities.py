"""flaresemi_predict --save-probabilities and --save-uncertainty: beside every label map, continued and never stale."""

import dataclasses
import shutil

import SimpleITK as sitk

from flaresemi.cli import predict
from flaresemi.confidence import Temperature
from flaresemi.inference.prediction_records import load_prediction
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.tables import read_table
from flaresemi.workspace import Workspace
from tests.cli.test_predict_dicom import folder  # noqa: F401
from tests.made_model import write_bright_model


def files(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*.nii.gz") if ".flaresemi" not in p.parts)


BOTH = ["probabilities/a/0_background.nii.gz", "probabilities/a/1_liver.nii.gz"]


def test_they_are_made_up_for_and_go_with_the_prediction_that_they_are_of(folder, capsys):  # noqa: F811
    words, out = ["-i", "scans", "-o", "out", "--precision", "fp32", "--quiet"], folder / "out"
    assert predict.main(words) == 0
    assert files(out) == ["a.nii.gz"]
    assert load_prediction(out / "a.nii.gz").saved is None
    assert predict.main([*words, "--continue", "--save-probabilities", "--probability-bits", "16"]) == 0
    assert files(out) == ["a.nii.gz", *BOTH]
    liver = sitk.ReadImage(str(out / BOTH[1]))
    label_map = sitk.ReadImage(str(out / "a.nii.gz"))
    assert liver.GetOrigin() == label_map.GetOrigin()
    assert ((sitk.GetArrayFromImage(liver) > 0.5) == (sitk.GetArrayFromImage(label_map) > 0)).all()
    saved = load_prediction(out / "a.nii.gz").saved
    assert (saved.bits, saved.extent, sorted(saved.files)) == (16, "image", BOTH)
    # What is there is not made again; what was saved of the same prediction stays beside what comes.
    before = (out / BOTH[1]).stat().st_mtime_ns
    assert predict.main([*words, "--continue", "--save-probabilities", "--probability-bits", "16"]) == 0
    assert (out / BOTH[1]).stat().st_mtime_ns == before
    assert predict.main([*words, "--continue", "--save-uncertainty"]) == 0
    assert sorted(load_prediction(out / "a.nii.gz").saved.files) == [*BOTH, "uncertainty/a.nii.gz"]
    # A lost file is made up for; another prediction takes the files of the one before along.
    (out / BOTH[0]).unlink()
    both = ["--save-probabilities", "--probability-bits", "16", "--save-uncertainty"]
    assert predict.main([*words, "--continue", *both]) == 0
    assert files(out) == ["a.nii.gz", *BOTH, "uncertainty/a.nii.gz"]
    write_bright_model(folder / "flaresemi", threshold_hu=100.0)
    assert predict.main(words) == 0
    assert files(out) == ["a.nii.gz"]
    assert not capsys.readouterr().err


def test_images_of_one_name_whose_outputs_are_files_keep_theirs_apart(folder):  # noqa: F811
    words, out = ["--save-probabilities", "--save-uncertainty", "--statistics", "--quiet"], folder / "out"
    for name in ("p1", "p2"):
        shutil.copytree(folder / "scans" / "a", folder / name / "ct")
        assert predict.main(["-i", f"{name}/ct", "-o", f"out/{name}.nii.gz", *words]) == 0
    assert files(out) == [
        *("p1.nii.gz", "p2.nii.gz"),
        *(f"probabilities/{name}/{organ}.nii.gz" for name in ("p1", "p2") for organ in ("0_background", "1_liver")),
        *("uncertainty/p1.nii.gz", "uncertainty/p2.nii.gz"),
    ]
    assert [row["case"] for row in read_table(out / "statistics.csv")[1]] == ["p1", "p2"]


def test_files_that_another_label_map_has_now_stay_when_this_one_is_replaced(folder):  # noqa: F811
    words, out = ["-i", "scans", "-o", "out", "--quiet"], folder / "out"
    assert predict.main([*words, "--save-probabilities"]) == 0
    write_bright_model(folder / "flaresemi", threshold_hu=100.0)
    assert predict.main([*words, "--format", "rtstruct", "--save-probabilities", "--probability-bits", "16"]) == 0
    assert predict.main(words) == 0
    assert files(out) == ["a.nii.gz", *BOTH]


def test_beside_dicom_objects_and_where_they_are_refused(folder, capsys):  # noqa: F811
    words, out = ["-i", "scans", "-o", "out", "--precision", "fp32"], folder / "out"
    form = ["--format", "rtstruct", "--save-probabilities", "--probability-extent", "region"]
    assert predict.main([*words, *form]) == 0
    assert files(out) == BOTH
    assert predict.main([*words, "--probability-bits", "16"]) == 2
    assert "add --save-probabilities" in capsys.readouterr().err
    (out / "uncertainty").mkdir()
    (out / "uncertainty" / "a.nii.gz").write_bytes(b"mine")
    assert predict.main([*words, "--save-uncertainty"]) == 2
    assert "did not write" in capsys.readouterr().err
    assert (out / "uncertainty" / "a.nii.gz").read_bytes() == b"mine"


def test_a_temperature_changes_what_is_saved_and_no_label(folder, capsys):  # noqa: F811
    words, out = ["-i", "scans", "-o", "out", "--precision", "fp32", "--save-probabilities"], folder / "out"
    model = Workspace(folder / "flaresemi").model("0", Stage.FINE).final
    assert predict.main(words) == 0
    assert "not calibrated" in capsys.readouterr().err
    sharp, labels = sitk.GetArrayFromImage(sitk.ReadImage(str(out / BOTH[1]))), (out / "a.nii.gz").read_bytes()
    temperature = Temperature(value=8.0, cases=3, voxels=9, error_before=0.2, error_after=0.1)
    save_checkpoint(model, dataclasses.replace(load_checkpoint(model), temperature=temperature))
    assert predict.main([*words, "--continue"]) == 0  # of the same weights; what was saved is outdated all the same
    assert "temperature 8" in capsys.readouterr().err
    soft = sitk.GetArrayFromImage(sitk.ReadImage(str(out / BOTH[1])))
    assert (out / "a.nii.gz").read_bytes() == labels
    between = (sharp > 0.6) & (sharp < 0.99)
    assert (soft[between] < sharp[between]).all()
    assert ((soft > 0.5) == (sharp > 0.5)).all()
    assert load_prediction(out / "a.nii.gz").saved.temperatures == (8.0,)
