import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from flaresemi import flare22
from flaresemi.cli import evaluate
from flaresemi.evaluation.summary import load_summary
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import write_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.checkpoint import Checkpoint, save_checkpoint
from flaresemi.plans import IntensityPlan, Plans, Stage
from flaresemi.records import save_record
from flaresemi.workspace import Workspace
from tests.made_nrrd import segment_fields, write_nrrd
from tests.made_plans import stage_plan, two_levels

SHAPE = (10, 16, 16)
LABELS = LabelSet(labels=(Label(name="liver", value=4), Label(name="tube", value=9)))


def write_map(path, shift=0, liver=4, tube=9, tube_slices=(2, 8), origin=(0.0, 0.0, 0.0)):
    values = np.zeros(SHAPE, np.int16)
    values[2:8, 2:8, 2 + shift : 8 + shift] = liver
    values[slice(*tube_slices), 10:14, 2:6] = tube
    geometry = Geometry(shape_zyx=SHAPE, spacing_zyx_mm=(2.0, 1.0, 1.0), origin_xyz_mm=origin)
    write_label_map(path, values, SourceGrid(geometry=geometry, axes=(0, 1, 2), flips=(False, False, False)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """References of three cases and predictions of them, ever worse; no dataset."""
    monkeypatch.chdir(tmp_path)
    for shift, name in enumerate(("p1", "p2", "p3")):
        write_map(tmp_path / "references" / f"{name}.nii.gz")
        write_map(tmp_path / "predictions" / f"{name}.nii.gz", shift=shift, tube_slices=(0, 10))
    return tmp_path


def declare(root, **more):
    """The dataset.json that the values of the maps fit."""
    root.mkdir(exist_ok=True)
    content = {"labels": {"background": 0, "liver": 4, "tube": 9}, "channel_names": {"0": "CT"}} | more
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def add_images(root, names=("p1", "p2", "p3"), origin=(0.0, 0.0, 0.0)):
    """Images in nnU-Net's layout; the labeled one is not among the cases that are evaluated."""
    for name in names:
        write_map(root / "imagesTs" / f"{name}_0000.nii.gz", liver=50, tube=40, origin=origin)
    write_map(root / "imagesTr" / "other_0000.nii.gz")
    write_map(root / "labelsTr" / "other.nii.gz")


def run(*words):
    return evaluate.main(["-p", "predictions", "-r", "references", "-o", "out/summary.json", *words])


def test_the_dataset_of_this_folder_names_the_organs(folder, capsys):
    declare(folder)
    assert run() == 0
    printed = capsys.readouterr().out
    assert "liver" in printed
    assert "assumed" not in printed
    summary = load_summary(folder / "out" / "summary.json")
    assert [organ.name for organ in summary.organs] == ["liver", "tube"]
    assert summary.organs[0].dice.mean == pytest.approx((1 + 5 / 6 + 4 / 6) / 3)
    assert summary.organs[1].dice.mean == pytest.approx(2 * 6 / 16)
    with open(folder / "out" / "summary.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 3 * 2


def test_another_dataset_may_be_named(folder):
    declare(folder, labels={"background": 0, "wrong": 1})
    declare(folder / "elsewhere")
    assert run("-d", "elsewhere") == 0


def test_without_dataset_flare22_is_assumed_and_said(folder, capsys):
    assert run() == 0
    assert "FLARE22's 13 are assumed" in capsys.readouterr().out
    summary = load_summary(folder / "out" / "summary.json")
    assert [organ.name for organ in summary.organs] == list(flare22.LABELS.names)
    assert summary.organs[3].present == 3  # the pancreas has value 4


def test_values_that_flare22_does_not_know_are_refused(folder, capsys):
    write_map(folder / "references" / "p2.nii.gz", tube=14)
    assert run() == 2
    error = capsys.readouterr().err
    assert "case 'p2'" in error
    assert "14" in error
    assert "0-13" in error
    assert "p2.nii.gz" in error
    assert not (folder / "out").exists()


def test_what_a_case_does_not_annotate_is_not_scored(folder):
    declare(folder, annotated_labels={"other": ["liver"]})
    declare(folder / "data", annotated_labels={"p2": ["liver"]})
    assert run("-d", "data") == 0
    assert [organ.cases for organ in load_summary(folder / "out" / "summary.json").organs] == [3, 2]


def test_tubes_are_scored_in_their_slices_where_asked(folder, capsys):
    declare(folder, z_range=["tube"])
    assert run() == 0
    assert load_summary(folder / "out" / "summary.json").organs[1].dice.mean == 1.0
    assert "tube *" in capsys.readouterr().out
    assert run("--z-range") == 0
    assert load_summary(folder / "out" / "summary.json").organs[1].dice.mean < 1.0
    assert run("--z-range", "liver") == 0
    assert [organ.z_range for organ in load_summary(folder / "out" / "summary.json").organs] == [True, False]
    assert run("--z-range", "tub") == 2
    assert "did you mean 'tube'" in capsys.readouterr().err


def test_the_official_quirks_are_an_option(folder):
    declare(folder, z_range=["tube"])
    write_map(folder / "predictions" / "p1.nii.gz", tube_slices=(2, 7))
    scores = []
    for words in ((), ("--official",)):
        assert run(*words) == 0
        scores.append(load_summary(folder / "out" / "summary.json").cases[0].organs["tube"].dice)
    assert scores == [pytest.approx(10 / 11), 1.0]


def test_missing_predictions(folder, capsys):
    declare(folder)
    (folder / "predictions" / "p2.nii.gz").unlink()
    assert run() == 2
    error = capsys.readouterr().err
    assert "1 of 3 cases have no prediction: p2" in error
    assert "--allow-missing" in error
    assert run("--allow-missing") == 0
    assert "counted nowhere: p2" in capsys.readouterr().out
    assert load_summary(folder / "out" / "summary.json").missing == ("p2",)


def test_grids_that_differ_are_refused(folder, capsys):
    declare(folder)
    write_map(folder / "predictions" / "p3.nii.gz", origin=(5.0, 0.0, 0.0))
    assert run() == 2
    error = capsys.readouterr().err
    assert "case 'p3'" in error
    assert "5 mm apart" in error


def test_one_file_against_one_file(folder):
    declare(folder)
    words = ["-p", "predictions/p2.nii.gz", "-r", "references/p1.nii.gz", "-o", "one.json"]
    assert evaluate.main(words) == 0
    assert [case.case_id for case in load_summary(folder / "one.json").cases] == ["p1"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-o", "summary.csv"], "JSON"),
        (["-d", "nowhere"], "not found"),
        (["--plans", "nowhere.json"], "nowhere.json"),
        (["-m", "nowhere"], "nowhere"),
        (["--overlay", "3"], "did you mean '--overlays'"),
        (["--overlays", "0"], "at least 1"),
        (["--overlays", "2"], "--images"),
        (["--plans", "a.json", "-d", "."], "not allowed"),
    ],
)
def test_wrong_options_are_one_clear_message(folder, capsys, words, complaint):
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert complaint in captured.err
    assert not captured.out


def test_overlays_show_the_worst_cases(folder, capsys):
    declare(folder)
    add_images(folder)
    assert run("--overlays", "2") == 0
    pictures = folder / "out" / "summary_overlays"
    assert sorted(path.name for path in pictures.iterdir()) == ["p2.png", "p3.png"]
    printed = capsys.readouterr().out
    assert printed.index("p3.png") < printed.index("p2.png")


def test_overlays_may_take_images_from_anywhere(folder, capsys):
    add_images(folder / "data", names=("p1", "p2"))
    add_images(folder / "data", names=("p2",), origin=(9.0, 0.0, 0.0))
    assert run("--overlays", "3", "--images", "data/imagesTs") == 0
    assert [path.name for path in (folder / "out" / "summary_overlays").iterdir()] == ["p1.png"]
    printed = capsys.readouterr().out
    assert "no image for case 'p3'" in printed
    assert "case 'p2' is not on its reference's grid" in printed


def test_cropped_segmentations_are_drawn_on_their_image(folder):
    """Neither is a part of the other: their image alone says where both lie."""
    declare(folder)
    whole = np.zeros(SHAPE, np.uint8)
    whole[2:8, 2:8, 2:8] = 4
    write_nrrd(folder / "images" / "a.nrrd", whole + np.arange(16, dtype=np.uint8))
    fields = segment_fields(("liver", 4, 0))
    for place, (z, y, x) in (("p", (1, 1, 1)), ("r", (2, 0, 1))):
        part = whole[z : z + 7, y : y + 9, x : x + 10]
        write_nrrd(folder / place / "a.seg.nrrd", part, fields=fields, origin_xyz=(1.5 * x, 2.0 * y, 3.0 * z))
    words = ["-p", "p", "-r", "r", "-o", "out/summary.json", "--images", "images", "--lesions", "liver"]
    assert evaluate.main([*words, "--overlays", "1"]) == 0
    assert [path.name for path in (folder / "out" / "summary_overlays").iterdir()] == ["a.png"]
    assert load_summary(folder / "out" / "summary.json").organs[0].dice.mean == 1.0


def test_the_next_command_draws_where_there_are_images(folder, capsys):
    declare(folder)
    assert run() == 0
    assert "next:" not in capsys.readouterr().out
    add_images(folder)
    assert run("--official") == 0
    assert capsys.readouterr().out.strip().endswith("--official --overlays 3")


def zscore_plan(stage):
    return stage_plan(two_levels(outputs=3), stage=stage, intensities=(IntensityPlan(scheme="zscore"),))


def test_organs_may_come_from_plans(folder):
    plans = Plans(
        dataset_name="tubes",
        channels=("MR",),
        labels=LABELS,
        fingerprint_hash="0",
        preset="small",
        memory_gib=4.0,
        body="foreground",
        fine=zscore_plan(Stage.FINE),
        coarse=zscore_plan(Stage.COARSE),
        reasons={},
    )
    save_record(folder / "plans.json", plans)
    assert run("--plans", "plans.json") == 0
    assert [organ.name for organ in load_summary(folder / "out" / "summary.json").organs] == ["liver", "tube"]
    declare(folder, labels={"background": 0, "liver": 4, "other": 5}, annotated_labels={"p2": ["liver", "other"]})
    assert run("--plans", "plans.json") == 0
    summary = load_summary(folder / "out" / "summary.json")
    assert [(organ.name, organ.cases) for organ in summary.organs] == [("liver", 3), ("tube", 2)]


def test_organs_may_come_from_trained_models(folder):
    checkpoint = Checkpoint(
        plan=zscore_plan(Stage.FINE),
        body="foreground",
        channels=("MR",),
        fold="0",
        iteration=1,
        total_iterations=1,
        labels=dataclasses.replace(LABELS, background=0),
        weights={"weight": torch.zeros(1)},
    )
    save_checkpoint(Workspace(folder / "work").model("0", Stage.FINE).final, checkpoint)
    assert run("-m", "work/models") == 0
    assert [organ.name for organ in load_summary(folder / "out" / "summary.json").organs] == ["liver", "tube"]
    declare(folder, labels={"background": 0, "liver": 4, "other": 5}, annotated_labels={"p2": ["liver", "other"]})
    assert run("-m", "work/models") == 0
    summary = load_summary(folder / "out" / "summary.json")
    assert [(organ.name, organ.cases) for organ in summary.organs] == [("liver", 3), ("tube", 2)]
