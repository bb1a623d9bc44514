"""Lesions are counted one by one: found, missed, false."""

import numpy as np
import pytest

from flaresemi.cli import evaluate
from flaresemi.evaluation.lesions import LEAST_IOU, lesions_told, score_lesions
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import write_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.tables import read_table

SHAPE = (12, 20, 30)
SPACING = (10.0, 10.0, 10.0)  # a voxel is 1 ml
LABELS = LabelSet(labels=(Label(name="liver", value=1, more_values=(2,)), Label(name="tumor", value=2)), ignore=9)


def boxes(*places, index=2):
    values = np.zeros(SHAPE, np.uint8)
    values[1:11] = LABELS.to_indices(np.array([1]))[0]
    for sides in places:
        values[tuple(slice(*side) for side in sides)] = index
    return values


def kinds(scores):
    return sorted((each.kind, each.reference_ml, each.prediction_ml) for each in scores)


TUMOR = int(LABELS.to_indices(np.array([2]))[0])

A = ((2, 4), (2, 4), (2, 4))  # 8 ml
B = ((6, 7), (8, 9), (10, 11))  # 1 ml
C = ((8, 10), (12, 14), (20, 25))  # 20 ml


def score(prediction, reference):
    return score_lesions("a", prediction, reference, SPACING, LABELS, ["tumor"])


def test_found_missed_and_false():
    reference = boxes(A, B, index=TUMOR)
    prediction = boxes(((2, 4), (2, 4), (2, 5)), C, index=TUMOR)
    scores = score(prediction, reference)
    assert [each.kind for each in scores] == ["found", "missed", "false"]
    found, missed, false = scores
    assert (found.reference_ml, found.prediction_ml) == pytest.approx((8, 12))
    assert found.dice == pytest.approx(16 / 20)
    assert (missed.reference_ml, missed.prediction_ml, missed.dice) == (pytest.approx(1), None, None)
    assert (false.reference_ml, false.prediction_ml) == (None, pytest.approx(20))


def test_the_same_map_finds_everything_and_an_empty_one_nothing():
    reference = boxes(A, B, C, index=TUMOR)
    assert {(each.kind, each.dice) for each in score(reference, reference)} == {("found", 1.0)}
    assert {each.kind for each in score(boxes(), reference)} == {"missed"}
    assert {each.kind for each in score(reference, boxes())} == {"false"}
    assert score(boxes(), boxes()) == []


def test_each_is_matched_once_by_the_one_that_overlaps_most():
    reference = boxes(((2, 4), (2, 4), (2, 6)), index=TUMOR)
    prediction = boxes(((2, 4), (2, 4), (2, 3)), ((2, 4), (2, 4), (4, 6)), index=TUMOR)
    found, false = score(prediction, reference)
    assert (found.kind, found.prediction_ml) == ("found", pytest.approx(8))
    assert (false.kind, false.prediction_ml) == ("false", pytest.approx(4))


def test_what_hardly_overlaps_is_not_found():
    large = boxes(((2, 4), (2, 7), (2, 8)), index=TUMOR)  # 60 ml
    for size, kind in ((6, "found"), (5, "missed")):
        small = boxes(((2, 3), (2, 3), (2, 2 + size)), index=TUMOR)
        assert (size / 60 >= LEAST_IOU) == (kind == "found")
        assert score(small, large)[0].kind == kind


def test_corners_hang_together_and_ignored_voxels_do_not_count():
    corner = boxes(((2, 3), (2, 3), (2, 3)), ((3, 4), (3, 4), (3, 4)), index=TUMOR)
    assert len(score(corner, corner)) == 1
    reference = boxes(A, index=TUMOR)
    reference[8:10] = LABELS.ignored
    assert kinds(score(boxes(A, C, index=TUMOR), reference)) == [("found", pytest.approx(8), pytest.approx(8))]


def test_the_table_counts_by_volume():
    told = lesions_told(score(boxes(A, C, index=TUMOR), boxes(A, B, index=TUMOR)), ["tumor"], 1).splitlines()
    rows = [line.split() for line in told[1:-1]]
    assert rows[2][:7] == ["tumor", "1", "to", "10", "2", "1", "(50%)"]
    assert rows[3][1:] == ["from", "10", "0", "0", "0", "1", "-"]
    assert rows[4][1:] == ["all", "2", "1", "(50%)", "1", "1", "1.000"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {"liver": [1, 2], "tumor": 2}}', encoding="utf-8")
    grid = SourceGrid.of(Geometry(shape_zyx=SHAPE, spacing_zyx_mm=SPACING))
    for name, values in (("p", boxes(A, C, index=TUMOR)), ("r", boxes(A, B, index=TUMOR))):
        write_label_map(tmp_path / name / "a.nii.gz", LABELS.to_values(values), grid)
    words = ["-p", "p", "-r", "r", "-o", "scores.json", "--lesions", "tumor"]
    assert evaluate.main(words) == 0
    assert "lesions of 1 case(s)" in capsys.readouterr().out
    rows = read_table(tmp_path / "scores_lesions.csv")[1]
    assert [row["lesion"] for row in rows] == ["found", "missed", "false"]
    assert evaluate.main(words) == 0  # its own
    (tmp_path / "scores_lesions.csv").write_text("mine\n", encoding="utf-8")
    assert evaluate.main(words) == 2
    assert evaluate.main(["-p", "p", "-r", "r", "-o", "other.json", "--lesions", "tumour"]) == 2
    assert "did you mean 'tumor'" in capsys.readouterr().err
