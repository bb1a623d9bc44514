import argparse
import os
import shutil
import weakref

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.cli import predict, predicting
from flaresemi.cli.prediction_files import refuse_foreign_tables
from flaresemi.errors import ConfigError
from flaresemi.files import content_hash
from flaresemi.geometry import Geometry
from flaresemi.inference.prediction_records import ImageVersion, load_prediction
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from flaresemi.room import enough_memory
from flaresemi.tables import read_table
from tests.made_dicom import Stack
from tests.made_model import BrightIsLiver, write_bright_model

pytestmark = pytest.mark.usefixtures("bright_is_liver")

SHAPE = (12, 24, 24)


def write_scan(path, first=4, value=300):
    """A scan whose liver begins at x = `first`; returns where the liver is."""
    array = np.zeros(SHAPE, np.int16)
    array[:, 0] = -1000
    array[4:8, 6:18, first : first + 8] = value
    grid = SourceGrid(
        geometry=Geometry(shape_zyx=SHAPE, spacing_zyx_mm=(3.0, 3.0, 3.0)), axes=(0, 1, 2), flips=(False,) * 3
    )
    write_label_map(path, array, grid)
    return array > 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with models in flaresemi/models and three scans in scans."""
    monkeypatch.chdir(tmp_path)
    write_bright_model(tmp_path / "flaresemi")
    for first, name in enumerate(("a_0000.nii.gz", "b_0000.nrrd", "c_0000.mha"), start=3):
        write_scan(tmp_path / "scans" / name, first)
    return tmp_path


def label_maps(out):
    return sorted(path.name for path in out.iterdir() if path.name != ".flaresemi")


def liver(path):
    values = read_label_map(path).array_zyx
    assert set(np.unique(values)) == {0, 7}
    return values == 7


@pytest.mark.parametrize("extra", [[], ["--single-process"]])
def test_a_folder(folder, capsys, extra):
    assert predict.main(["-i", "scans", "-o", "out", *extra]) == 0
    assert label_maps(folder / "out") == ["a.nii.gz", "b.nrrd", "c.mha"]
    assert np.array_equal(liver(folder / "out" / "b.nrrd"), write_scan(folder / "again.nrrd", 4))
    printed = capsys.readouterr()
    assert "next: flaresemi_evaluate -p out" in printed.out
    assert [line.split(":")[0] for line in printed.err.splitlines() if " s (read " in line] == ["a", "b", "c"]
    assert "3 label map(s) written to out" in printed.err


def test_one_file_to_a_file_or_into_a_folder(folder):
    assert predict.main(["-i", "scans/a_0000.nii.gz", "-o", "new/liver.nrrd"]) == 0
    assert predict.main(["-i", "scans/a_0000.nii.gz", "-o", "new", "--tta", "--step", "1", "--device", "cpu"]) == 0
    assert np.array_equal(liver(folder / "new" / "liver.nrrd"), liver(folder / "new" / "a.nii.gz"))


def test_models_from_another_place(folder):
    shutil.move(folder / "flaresemi" / "models" / "fold_0", folder / "moved")
    assert predict.main(["-i", "scans", "-o", "out"]) == 2
    assert predict.main(["-i", "scans", "-o", "out", "-m", "moved"]) == 0
    assert predict.main(["-i", "scans", "-o", "out", "-m", "moved", "--fold", "3"]) == 2


def test_a_list(folder):
    (folder / "lists").mkdir()
    (folder / "scans" / "b_0000.nrrd").rename(folder / "lists" / "b.nrrd")
    (folder / "lists" / "test.txt").write_text("# two scans\nscans/a_0000.nii.gz\n\nb.nrrd\nscans/a_0000.nii.gz\n")
    assert predict.main(["-i", "lists/test.txt", "-o", "out"]) == 0
    assert label_maps(folder / "out") == ["a.nii.gz", "b.nrrd"]


def test_continue_skips_what_is_done(folder, capsys):
    assert predict.main(["-i", "scans/b_0000.nrrd", "-o", "out"]) == 0
    done = (folder / "out" / "b.nrrd").stat().st_mtime_ns
    capsys.readouterr()
    assert predict.main(["-i", "scans", "-o", "out", "--continue"]) == 0
    assert "1 of 3 cases have their label map already" in capsys.readouterr().err
    assert (folder / "out" / "b.nrrd").stat().st_mtime_ns == done
    assert len(label_maps(folder / "out")) == 3
    whole = (folder / "out" / "b.nrrd").read_bytes()
    (folder / "out" / "b.nrrd").write_bytes(whole[:-20])
    assert predict.main(["-i", "scans", "-o", "out", "--continue"]) == 0
    assert "predicted again: the file is" in capsys.readouterr().err
    assert (folder / "out" / "b.nrrd").read_bytes() == whole
    done = (folder / "out" / "b.nrrd").stat().st_mtime_ns
    assert predict.main(["-i", "scans", "-o", "out"]) == 0  # without it, everything is done anew
    assert (folder / "out" / "b.nrrd").stat().st_mtime_ns > done


@pytest.mark.parametrize("extra", [["--window", "patch"], ["--engine", "torch"], ["--precision", "fp32"]])
def test_continue_keeps_nothing_that_was_made_with_other_options(folder, capsys, extra):
    words = ["-i", "scans/b_0000.nrrd", "-o", "out", "--continue"]
    assert predict.main(words) == 0
    assert predict.main([*words, *extra]) == 0
    assert "with other options or from other images: predicted again" in capsys.readouterr().err
    assert predict.main([*words, *extra]) == 0
    assert "1 of 1 cases have their label map already" in capsys.readouterr().err


def test_continue_looks_at_voxels_that_lie_beside_their_header(folder, capsys):
    image = sitk.ReadImage(str(folder / "scans" / "b_0000.nrrd"))
    sitk.WriteImage(image, str(folder / "one.mhd"))
    voxels = folder / "one.raw"
    assert predict.main(["-i", "one.mhd", "-o", "one.nii.gz"]) == 0
    for is_done in (True, False):
        capsys.readouterr()
        assert predict.main(["-i", "one.mhd", "-o", "one.nii.gz", "--continue"]) == 0
        assert ("have their label map already" in capsys.readouterr().err) == is_done
        voxels.write_bytes(bytes(reversed(voxels.read_bytes())))


@pytest.mark.parametrize("extra", [[], ["--single-process"]])
def test_a_bad_image_does_not_stop_the_others(folder, capsys, extra):
    content = (folder / "scans" / "a_0000.nii.gz").read_bytes()
    (folder / "scans" / "a_0000.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "scans" / "bad_0000.nii.gz").write_bytes(b"")
    assert predict.main(["-i", "scans", "-o", "out", *extra]) == 2
    assert label_maps(folder / "out") == ["b.nrrd", "c.mha"]
    error = capsys.readouterr().err
    summary = error[error.index("error: ") :]
    assert summary.startswith("error: 2 of 4 case(s) could not be predicted; the others are done")
    assert "a: " in summary
    assert "bad_0000.nii.gz" in summary
    assert "--continue" in summary
    assert "Traceback" not in error


@pytest.mark.parametrize("extra", [[], ["--single-process"]])
def test_cases_that_failed_hold_no_memory(folder, extra, monkeypatch):
    scores = []

    def lacks_memory(*_):
        assert all(each() is None for each in scores)
        own = np.zeros(9)
        scores.append(weakref.ref(own))
        with enough_memory():
            raise MemoryError

    monkeypatch.setattr(predicting, "_segment", lacks_memory)
    assert predict.main(["-i", "scans", "-o", "out", *extra]) == 2
    assert len(scores) == 3


def write_series(folder, first=4):
    """The scan of `write_scan` as DICOM slices."""
    array = np.zeros(SHAPE, np.int16)
    array[:, 0] = -1000
    array[4:8, 6:18, first : first + 8] = 300
    Stack(array_zyx=array, spacing=(3.0, 3.0, 3.0), origin=(0.0, 0.0, 0.0)).write(folder)


def test_a_folder_of_slices_is_an_image(folder):
    write_series(folder / "scans" / "d_0000", first=5)
    write_series(folder / "lists" / "e", first=4)
    (folder / "lists" / "some.txt").write_text("scans/d_0000\ne\n")
    assert predict.main(["-i", "scans/d_0000", "-o", "one"]) == 0
    assert predict.main(["-i", "scans/d_0000", "-o", "one/liver.mha"]) == 0
    assert predict.main(["-i", "scans", "-o", "all"]) == 0
    assert predict.main(["-i", "lists/some.txt", "-o", "listed"]) == 0
    assert label_maps(folder / "one") == ["d.nii.gz", "liver.mha"]
    assert label_maps(folder / "all") == ["a.nii.gz", "b.nrrd", "c.mha", "d.nii.gz"]
    assert label_maps(folder / "listed") == ["d.nii.gz", "e.nii.gz"]
    same = liver(folder / "all" / "c.mha")  # of the same voxels in another format
    for path in ("one/d.nii.gz", "one/liver.mha", "all/d.nii.gz", "listed/d.nii.gz"):
        assert np.array_equal(liver(folder / path), same)
    assert np.array_equal(liver(folder / "listed" / "e.nii.gz"), liver(folder / "all" / "b.nrrd"))


def test_slices_where_they_cannot_be_meant(folder, capsys):
    write_series(folder / "series")
    assert predict.main(["-i", "series", "-o", "series"]) == 2
    assert "the output folder is a folder of DICOM slices" in capsys.readouterr().err
    assert predict.main(["-i", "series/IM3701", "-o", "out"]) == 2
    assert "name the folder that holds its slices" in capsys.readouterr().err
    shutil.copy(folder / "scans" / "b_0000.nrrd", folder / "series")
    assert predict.main(["-i", "series", "-o", "out"]) == 2
    assert "DICOM slices and other images in one folder" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_channels_beside_the_named_file(folder, capsys):
    write_bright_model(folder / "pet", channels=2)
    for name, value in (("p_0000.nii.gz", 300), ("p_0001.nii.gz", -100), ("q_0000.nii.gz", 300)):
        truth = write_scan(folder / "pairs" / name, 5, value)
    options = ["-m", "pet", "-o", "out"]
    assert predict.main(["-i", "pairs/p_0001.nii.gz", *options]) == 0
    assert np.array_equal(liver(folder / "out" / "p.nii.gz"), write_scan(folder / "again.nrrd", 5))
    assert not truth[0].any()
    capsys.readouterr()
    assert predict.main(["-i", "pairs/q_0000.nii.gz", *options]) == 2
    assert "q_0001.nii.gz" in capsys.readouterr().err
    assert predict.main(["-i", "again.nrrd", *options]) == 2
    assert "ends with _0000.nrrd" in capsys.readouterr().err
    assert predict.main(["-i", "pairs", *options]) == 2
    assert "the image has 1 channel(s), the model was trained with 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["-i", "nothing", "-o", "out"], "input not found"),
        (["-i", "empty", "-o", "out"], "no images in this folder"),
        (["-i", "scans", "-o", "scans"], "the output folder is the folder of the images"),
        (["-i", "plain.nii.gz", "-o", "."], "would overwrite an image"),
        (["-i", "plain.nii.gz", "-o", "scans/../plain.nii.gz"], "would overwrite an image"),
        (["-i", "scans", "-o", "out.nii.gz"], "the output must be a folder"),
        (["-i", "scans", "-o", "notes.txt"], "exists and is no folder"),
        (["-i", "model.pt", "-o", "out"], "neither an image nor a folder nor a list"),
        (["-i", "notes.txt", "-o", "out"], "the list names no image"),
        (["-i", "wrong.txt", "-o", "out"], "1 file(s) of the list are not there"),
        (["-i", "twice.txt", "-o", "out"], "two cases are called 'a'"),
        (["-i", "scans", "-o", "out", "--device", "tpu"], "unknown device"),
        (["-i", "scans", "-o", "out", "--step", "0"], "at least 0.01 and at most 1"),
        (["-i", "scans", "-o", "out", "--step", "wide"], "at least 0.01 and at most 1"),
        (["-i", "scans", "-o", "out", "--threads", "0"], "at least 1"),
        (["-i", "scans", "-o", "out", "--fodl", "0"], "did you mean '--fold'?"),
    ],
)
def test_one_clear_message_and_exit_code_2(folder, capsys, options, complaint):
    (folder / "empty").mkdir()
    shutil.copy(folder / "scans" / "a_0000.nii.gz", folder / "plain.nii.gz")
    shutil.copy(folder / "scans" / "a_0000.nii.gz", folder / "empty" / "..a_0000.nii.gz")  # hidden: not an image
    before = (folder / "plain.nii.gz").read_bytes()
    for name, text in (
        ("model.pt", "x"),
        ("notes.txt", "# nothing\n"),
        ("wrong.txt", "scans/z.nii.gz\n"),
        ("twice.txt", "scans/a_0000.nii.gz\na.nrrd\n"),
    ):
        (folder / name).write_text(text)
    shutil.copy(folder / "scans" / "b_0000.nrrd", folder / "a.nrrd")
    assert predict.main(options) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error
    assert (folder / "plain.nii.gz").read_bytes() == before
    assert not (folder / "out").exists()


FOREIGN = (
    lambda path, theirs: shutil.copy(theirs, path),
    lambda path, theirs: path.symlink_to(theirs),
    lambda path, theirs: path.symlink_to("nowhere"),
    lambda path, theirs: path.write_bytes(b"no label map"),
)


@pytest.mark.parametrize("extra", [[], ["--continue"]])
@pytest.mark.parametrize("make", FOREIGN)
def test_what_it_did_not_write_is_not_replaced(folder, capsys, make, extra):
    write_scan(folder / "theirs.nii.gz", 9)
    theirs = (folder / "theirs.nii.gz").read_bytes()
    (folder / "out").mkdir()
    make(folder / "out" / "a.nii.gz", folder / "theirs.nii.gz")
    assert predict.main(["-i", "scans", "-o", "out", *extra]) == 2
    error = capsys.readouterr().err
    assert "1 file(s) would be replaced that flaresemi_predict did not write" in error
    assert "a.nii.gz" in error
    assert "--overwrite" in error
    assert label_maps(folder / "out") == ["a.nii.gz"]  # before anything is computed
    assert predict.main(["-i", "scans", "-o", "out", "--overwrite", *extra]) == 0
    assert liver(folder / "out" / "a.nii.gz").any()
    assert not (folder / "out" / "a.nii.gz").is_symlink()
    assert (folder / "theirs.nii.gz").read_bytes() == theirs
    assert predict.main(["-i", "scans", "-o", "out", *extra]) == 0  # they are its own now


def test_a_corrected_prediction_is_somebodys_work(folder, capsys):
    assert predict.main(["-i", "scans", "-o", "out"]) == 0
    write_scan(folder / "out" / "b.nrrd", 2, value=7)
    corrected = (folder / "out" / "b.nrrd").read_bytes()
    for extra in ([], ["--continue"]):
        assert predict.main(["-i", "scans", "-o", "out", *extra]) == 2
        assert "or that were changed since: b.nrrd" in capsys.readouterr().err
    assert (folder / "out" / "b.nrrd").read_bytes() == corrected


def test_killed_between_the_record_and_the_label_map(folder, monkeypatch):
    assert predict.main(["-i", "scans/a_0000.nii.gz", "-o", "out"]) == 0
    before = (folder / "out" / "a.nii.gz").read_bytes()
    write_scan(folder / "scans" / "a_0000.nii.gz", 6)
    with monkeypatch.context() as patch:
        replace = os.replace
        patch.setattr(
            "flaresemi.files.os.replace",
            lambda source, target: replace(source, target) if target.name != "a.nii.gz" else os.kill(1, "killed"),
        )
        with pytest.raises(TypeError):
            predict.main(["-i", "scans/a_0000.nii.gz", "-o", "out"])
    assert (folder / "out" / "a.nii.gz").read_bytes() == before
    assert load_prediction(folder / "out" / "a.nii.gz").label_map != content_hash(folder / "out" / "a.nii.gz")
    assert predict.main(["-i", "scans/a_0000.nii.gz", "-o", "out", "--continue"]) == 0
    assert np.array_equal(liver(folder / "out" / "a.nii.gz"), write_scan(folder / "again.nrrd", 6))


@pytest.mark.parametrize("name", ["labelsTr", "imagesTs", "labeled_mask", "test_mask"])
def test_a_folder_of_a_dataset_gets_nothing_mixed_in(folder, capsys, name):
    write_scan(folder / "data" / name / "other.nii.gz")
    assert predict.main(["-i", "scans", "-o", f"data/{name}"]) == 2
    assert "belongs to a dataset" in capsys.readouterr().err
    assert label_maps(folder / "data" / name) == ["other.nii.gz"]


def test_the_input_folder_is_no_output_folder_even_of_one_image(folder, capsys):
    write_scan(folder / "single" / "a_0000.nii.gz")
    (folder / "link").symlink_to("single")
    for output in ("single", "link"):
        assert predict.main(["-i", "single", "-o", output]) == 2
        assert "the output folder is the folder of the images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reliability.csv", "efficiency/a.json", ".flaresemi/a.nii.gz.json"])
def test_tables_of_others_are_not_replaced(folder, capsys, name):
    path = folder / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}')
    if name == "reliability.csv":  # these models have no calibration
        options = argparse.Namespace(reliability=True, measure=False, overwrite=False)
        with pytest.raises(ConfigError, match=r"reliability\.csv"):
            refuse_foreign_tables([], folder / "out", options)
        return
    assert predict.main(["-i", "scans", "-o", "out", "--measure"]) == 2
    assert path.name in capsys.readouterr().err
    assert path.read_text() == '{"mine": 1}'


def test_the_record_says_what_a_label_map_was_made_from(folder):
    assert predict.main(["-i", "scans", "-o", "out", "--tta"]) == 0
    found = load_prediction(folder / "out" / "b.nrrd")
    image = folder / "scans" / "b_0000.nrrd"
    assert found.images == (ImageVersion.of(image),)
    assert found.images[0].content == content_hash(image)
    assert found.grid == read_grid(image).geometry
    assert found.label_map == content_hash(folder / "out" / "b.nrrd")
    assert found.options["tta"] == "True"
    assert [model.split()[:2] for model in found.models] == [["FINE", "0"]]


class NotANumberWhereVeryBright(BrightIsLiver):
    def forward(self, image_bczyx):
        return super().forward(image_bczyx) + (900 - image_bczyx.amax()).clamp(max=1).log()


def test_an_output_that_is_not_finite_is_the_error_of_its_case(folder, monkeypatch, capsys):
    monkeypatch.setattr("flaresemi.networks.engine.build_network", NotANumberWhereVeryBright)
    write_scan(folder / "scans" / "b_0000.nrrd", value=1000)
    assert predict.main(["-i", "scans", "-o", "out"]) == 2
    assert label_maps(folder / "out") == ["a.nii.gz", "c.mha"]
    assert "b: the output of FINE is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1e3, 1e-3])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1,)])
def test_a_wild_spacing_is_the_error_of_its_case_at_most(folder, capsys, factor, axes):
    array = np.zeros(SHAPE, np.int16)
    array[:, 0] = -1000
    spacing = tuple(3.0 * factor if axis in axes else 3.0 for axis in range(3))
    geometry = Geometry(shape_zyx=SHAPE, spacing_zyx_mm=spacing)
    write_label_map(
        folder / "scans" / "b_0000.nrrd", array, SourceGrid(geometry=geometry, axes=(0, 1, 2), flips=(False,) * 3)
    )
    too_large = factor > 1
    assert predict.main(["-i", "scans", "-o", "out"]) == (2 if too_large else 0)
    assert (folder / "out" / "b.nrrd").exists() != too_large
    assert {"a.nii.gz", "c.mha"} <= set(label_maps(folder / "out"))
    if too_large:
        told = "3000×3000×3000" if len(axes) > 1 else "3×3000×3"
        assert f"b: its 12×24×24 voxels of {told} mm" in capsys.readouterr().err


def write_raw(path, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 3.0, 3.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def table_of(folder):
    columns, rows = read_table(folder / "warnings.csv")
    assert columns == ("case", "problem", "message", "remedy", "file", "refused")
    return {(row["case"], row["problem"], row["refused"]) for row in rows}


@pytest.fixture
def odd(folder):
    """The scans, of which one is constant, and one more that is shifted by 1024."""
    scan = read_image([folder / "scans" / "a_0000.nii.gz"]).array_czyx[0]
    write_raw(folder / "scans" / "b_0000.nrrd", np.zeros_like(scan))
    write_raw(folder / "scans" / "d_0000.mha", scan + 1024)
    return folder


@pytest.mark.parametrize("extra", [[], ["--single-process"], ["--measure"]])
def test_images_that_are_not_in_hu_are_warned_of(odd, capsys, extra):
    assert predict.main(["-i", "scans", "-o", "out", *extra]) == 0
    told = capsys.readouterr().err
    assert "warning: b: every voxel is 0, which does not look like Hounsfield units" in told
    assert "warning: d: intensities from 24 to 1324 do not look like Hounsfield units" in told
    assert "warning: a:" not in told
    assert {(case, refused) for case, _, refused in table_of(odd / "out")} == {("b", "no"), ("d", "no")}
    assert {"a.nii.gz", "b.nrrd", "c.mha", "d.mha"} < set(label_maps(odd / "out"))
    record = load_prediction(odd / "out" / "d.mha")
    assert (record.findings[0].case_id, record.findings[0].problem) == ("d", "no HU")
    assert record.findings[0].file.endswith("d_0000.mha")
    assert load_prediction(odd / "out" / "a.nii.gz").findings == ()


def test_strict_refuses_them_and_the_others_are_done(odd, capsys):
    assert predict.main(["-i", "scans", "-o", "out", "--strict"]) == 2
    assert "2 of 4 case(s) could not be predicted; the others are done" in capsys.readouterr().err
    assert {(case, refused) for case, _, refused in table_of(odd / "out")} == {("b", "yes"), ("d", "yes")}
    assert not (odd / "out" / "d.mha").exists()
    assert {"a.nii.gz", "c.mha"} < set(label_maps(odd / "out"))
    assert predict.main(["-i", "scans", "-o", "out", "--continue"]) == 0  # as the user has decided now
    assert {refused for _, _, refused in table_of(odd / "out")} == {"no"}
    assert predict.main(["-i", "scans", "-o", "out", "--continue", "--strict"]) == 2  # their label maps are there
    assert {refused for _, _, refused in table_of(odd / "out")} == {"yes"}


def test_the_warnings_survive_a_kill_and_other_starts(odd):
    (odd / "part").mkdir()
    (odd / "scans" / "d_0000.mha").rename(odd / "part" / "d_0000.mha")
    assert predict.main(["-i", "part", "-o", "out"]) == 0
    (odd / "out" / "warnings.csv").unlink()  # killed before its end
    assert predict.main(["-i", "scans", "-o", "out"]) == 0
    assert {case for case, _, _ in table_of(odd / "out")} == {"b", "d"}
    before = (odd / "out" / "warnings.csv").read_bytes()
    assert predict.main(["-i", "scans", "-o", "out", "--continue"]) == 0
    assert (odd / "out" / "warnings.csv").read_bytes() == before
    for name, first in (("scans/b_0000.nrrd", 4), ("part/d_0000.mha", 5)):
        write_scan(odd / name, first)
    assert predict.main(["-i", "scans", "-o", "out"]) == 0
    assert predict.main(["-i", "part", "-o", "out"]) == 0
    assert not (odd / "out" / "warnings.csv").exists()


def test_a_table_of_warnings_that_is_not_ours_is_not_replaced(odd, capsys):
    (odd / "out").mkdir()
    (odd / "out" / "warnings.csv").write_text("mine,2\n")
    assert predict.main(["-i", "scans", "-o", "out"]) == 2
    assert "warnings.csv" in capsys.readouterr().err
    assert (odd / "out" / "warnings.csv").read_text() == "mine,2\n"


@pytest.mark.parametrize("modality", ["MR", "PT", "SEG", "RTSTRUCT"])
def test_a_dicom_series_of_another_kind_is_warned_of(folder, capsys, modality):
    array = read_image([folder / "scans" / "a_0000.nii.gz"]).array_czyx[0]
    stack = Stack(array_zyx=array, spacing=(3.0, 3.0, 3.0), origin=(0.0, 0.0, 0.0), modality=modality)
    stack.write(folder / "dicom" / "scan")
    assert predict.main(["-i", "dicom/scan", "-o", "out"]) == 0
    assert f"the series is {modality} by its headers, channel 'CT' is CT" in capsys.readouterr().err
    assert ("scan", "modality", "no") in table_of(folder / "out")
    assert predict.main(["-i", "dicom/scan", "-o", "strict", "--strict"]) == 2
