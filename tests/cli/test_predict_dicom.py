"""flaresemi_predict --format: results as DICOM objects beside the series that they are of."""

import json

import numpy as np
import pydicom
import pytest

from flaresemi.cli import predict
from flaresemi.inference.prediction_records import load_prediction
from tests.made_dicom import Stack
from tests.made_model import write_bright_model

SHAPE = (12, 24, 24)


@pytest.fixture
def folder(tmp_path, monkeypatch, bright_is_liver):
    """A folder with a model in flaresemi/models and a series in scans/a."""
    monkeypatch.chdir(tmp_path)
    write_bright_model(tmp_path / "flaresemi")
    array = np.zeros(SHAPE, np.int16)
    array[:, 0] = -1000
    array[4:8, 6:18, 5:13] = 300
    Stack(array_zyx=array, spacing=(3.0, 3.0, 3.0)).write(tmp_path / "scans" / "a")
    return tmp_path


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_a_folder_of_series(folder, form):
    arguments = ["-i", "scans", "-o", "out", "--format", form, "--model-name", "abdomen", "--content-label", "Study 7"]
    assert predict.main(arguments) == 0
    (path,) = (folder / "out").glob("*.dcm")
    assert path.name == {"dicom-seg": "a.seg.dcm", "rtstruct": "a.rtstruct.dcm"}[form]
    made = pydicom.dcmread(path)
    if form == "dicom-seg":
        assert int(made.NumberOfFrames) == 4
        assert np.count_nonzero(made.pixel_array) == 4 * 12 * 8
    else:
        assert len(made.ROIContourSequence[0].ContourSequence) == 4
    assert made.SeriesDescription == "abdomen: Study 7"
    assert load_prediction(path).options["label"] == "Study 7"


def test_continue_skips_what_is_written_and_another_label_is_written_anew(folder):
    arguments = ["-i", "scans", "-o", "out", "--format", "rtstruct", "--continue"]
    assert predict.main(arguments) == 0
    path = folder / "out" / "a.rtstruct.dcm"
    first = path.read_bytes()
    assert predict.main(arguments) == 0
    assert path.read_bytes() == first
    assert predict.main([*arguments, "--content-label", "other"]) == 0
    assert pydicom.dcmread(path).StructureSetLabel == "OTHER"
    path.write_bytes(first[:-2])  # somebody else's now
    assert predict.main(arguments) == 2


def test_one_series_to_one_file(folder):
    assert predict.main(["-i", "scans/a", "-o", "liver.dcm", "--format", "rtstruct"]) == 0
    assert pydicom.dcmread(folder / "liver.dcm").Modality == "RTSTRUCT"


def test_the_users_codes_come_from_the_dataset_or_a_file(folder):
    own = {"value": "X1", "scheme": "99US", "meaning": "Our liver"}
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"liver": 7}, "codes": {"liver": own}}), encoding="utf-8"
    )
    assert predict.main(["-i", "scans", "-o", "out", "--format", "dicom-seg"]) == 0
    (segment,) = pydicom.dcmread(folder / "out" / "a.seg.dcm").SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Our liver"
    other = folder / "codes.json"
    other.write_text(json.dumps({"codes": {"liver": own | {"value": "X2"}}}), encoding="utf-8")
    arguments = ["-i", "scans", "-o", "out", "--format", "dicom-seg", "--continue", "--organ-codes", "codes.json"]
    assert predict.main(arguments) == 0
    (segment,) = pydicom.dcmread(folder / "out" / "a.seg.dcm").SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "X2"
    other.write_text(json.dumps({"codes": {"river": own}}), encoding="utf-8")
    assert predict.main(arguments) == 2


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["-i", "scan.nii.gz", "-o", "out", "--format", "dicom-seg"], "1 image(s) are files: scan.nii.gz"),
        (["-i", "scans", "-o", "out.nii.gz", "--format", "rtstruct"], "named like an image"),
        (["-i", "scans", "-o", "out", "--model-name", "x"], "--model-name is written into DICOM objects alone"),
        (["-i", "scans", "-o", "out", "--format", "rtstruct", "--content-label", "a" * 65], "1 to 64 characters"),
    ],
)
def test_what_cannot_be_written_is_refused_with_one_message(folder, capsys, extra, said):
    (folder / "scan.nii.gz").write_bytes(b"not looked at")
    assert predict.main(extra) == 2
    assert said in capsys.readouterr().err
    assert not list(folder.glob("out*"))
