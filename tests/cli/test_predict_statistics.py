"""flaresemi_predict --statistics: one table of all cases of a folder."""

import os

import pytest

from flaresemi.cli import predict
from flaresemi.tables import read_table
from tests.cli.test_predict_dicom import folder  # noqa: F401
from tests.made_model import write_bright_model


@pytest.mark.parametrize("form", [[], ["--format", "rtstruct"]])
def test_measures_stand_in_one_table_and_are_made_up_for(folder, form):  # noqa: F811
    arguments = ["-i", "scans", "-o", "out", *form]
    assert predict.main(arguments) == 0
    assert not (folder / "out" / "statistics.csv").exists()
    assert predict.main([*arguments, "--continue", "--statistics"]) == 0
    (row,) = read_table(folder / "out" / "statistics.csv")[1]
    assert (row["case"], row["organ"], row["voxels"], row["touches"]) == ("a", "liver", str(4 * 12 * 8), "")
    assert float(row["volume_ml"]) == pytest.approx(4 * 12 * 8 * 27 / 1000, rel=1e-5)
    assert (float(row["mean CT"]), float(row["sd CT"])) == (300.0, 0.0)
    (folder / "out" / "statistics.json").unlink()
    assert predict.main([*arguments, "--continue", "--statistics"]) == 0
    assert (folder / "out" / "statistics.json").is_file()


def test_a_table_of_somebody_else_is_not_replaced(folder, capsys):  # noqa: F811
    (folder / "out").mkdir()
    (folder / "out" / "statistics.csv").write_text("mine\n1\n", encoding="utf-8")
    assert predict.main(["-i", "scans", "-o", "out", "--statistics"]) == 2
    assert "statistics.csv" in capsys.readouterr().err
    assert predict.main(["-i", "scans", "-o", "out"]) == 0
    assert (folder / "out" / "statistics.csv").read_text(encoding="utf-8") == "mine\n1\n"


def test_of_a_case_in_two_formats_the_one_of_this_run_stands_in_the_table(folder):  # noqa: F811
    words, out = ["-i", "scans", "-o", "out", "--statistics", "--quiet"], folder / "out"
    dicom = [*words, "--format", "rtstruct"]
    assert predict.main(dicom) == 0
    write_bright_model(folder / "flaresemi", threshold_hu=1e6)
    for again in ([], ["--continue"]):
        assert predict.main([*words, *again]) == 0
        (row,) = read_table(out / "statistics.csv")[1]
        assert row["voxels"] == "0"
        os.utime(out / "a.rtstruct.dcm", (2e9, 2e9))  # a copy of the folder may have any order of times
    # Of those that are not of this run, the younger one counts.
    os.utime(out / "a.nii.gz", (3e9, 3e9))
    (folder / "scans" / "a").rename(folder / "b")
    assert predict.main(["-i", "b", "-o", "out", "--statistics", "--quiet"]) == 0
    assert [row["voxels"] for row in read_table(out / "statistics.csv")[1]] == ["0", "0"]
