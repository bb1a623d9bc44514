import csv
import dataclasses
import json
import statistics

import pytest

from flaresemi.errors import DatasetError
from flaresemi.evaluation.flare import OrganMetrics
from flaresemi.evaluation.folders import CaseScores
from flaresemi.evaluation.summary import evaluate_folders, load_summary, save_summary, summarize, table


def organ(dice, nsd=0.5, hd95_mm=3.0, reference_ml=10.0):
    return OrganMetrics(dice=dice, nsd=nsd, hd95_mm=hd95_mm, reference_ml=reference_ml, prediction_ml=9.0)


UNSCORED = OrganMetrics(dice=None, nsd=None, hd95_mm=None, reference_ml=None, prediction_ml=1.0)
ABSENT = organ(1.0, 1.0, None, reference_ml=0.0)

CASES = (
    CaseScores(case_id="b", organs={"liver": organ(0.8, 0.7, 4.0), "spleen": UNSCORED}),
    CaseScores(case_id="a", organs={"liver": organ(0.9, 0.9, 2.0), "spleen": organ(0.4)}),
    CaseScores(case_id="c", organs={"liver": organ(0.0, 0.0, None), "spleen": ABSENT}),
)


@pytest.fixture
def summary(labels):
    return summarize(CASES, labels, default_tolerance_mm=2.5, missing=("z", "y"))


def test_an_organ_is_the_mean_over_its_cases_and_the_total_the_mean_over_organs(summary):
    liver, spleen = summary.organs
    assert liver.dice.mean == pytest.approx(1.7 / 3)
    assert liver.dice.sd == pytest.approx(statistics.stdev([0.8, 0.9, 0.0]))
    assert liver.dice.median == 0.8
    assert (liver.cases, liver.present) == (3, 3)
    assert (liver.hd95_mm.count, liver.hd95_mm.mean) == (2, 3.0)
    assert spleen.dice.mean == pytest.approx(0.7)
    assert summary.mean_dice == pytest.approx((1.7 / 3 + 0.7) / 2)
    assert summary.mean_nsd == pytest.approx((1.6 / 3 + 0.75) / 2)
    assert summary.mean_hd95_mm == pytest.approx(3.0)


def test_organs_that_a_case_does_not_annotate_do_not_count(summary):
    assert (summary.organs[1].cases, summary.organs[1].present) == (2, 1)


def test_absent_organs_count_apart(summary):
    """The spleen is scored 1 where nobody has it; where it is present, it is poor."""
    assert summary.mean_dice_present == pytest.approx((1.7 / 3 + 0.4) / 2)


def test_another_metric_is_printed_also_where_the_first_organ_was_scored_nowhere(labels):
    spleen = dataclasses.replace(organ(0.5), more={"assd_mm": 1.25})
    cases = (CaseScores(case_id="a", organs={"liver": UNSCORED, "spleen": spleen}),)
    head, *lines = table(summarize(cases, labels, default_tolerance_mm=2.5)).splitlines()
    assert head.endswith("assd_mm")
    found = {line.split()[0]: line.split()[-1] for line in lines if line.startswith(("liver", "spleen", "mean over"))}
    assert found == {"liver": "-", "spleen": "1.250", "mean": "1.250"}


def test_tolerances_are_recorded(summary):
    assert [each.tolerance_mm for each in summary.organs] == [1.0, 2.5]


def test_cases_and_missing_ones_are_in_order(summary):
    assert [case.case_id for case in summary.cases] == ["a", "b", "c"]
    assert summary.missing == ("y", "z")


def test_an_organ_that_no_case_annotates_has_no_figures(labels):
    summary = summarize(CASES[:1], labels, default_tolerance_mm=2.0)
    assert summary.organs[1].dice is None
    assert summary.mean_dice == pytest.approx(0.8)
    assert summary.organs[0].dice.sd is None
    assert "nan" not in table(summary).lower()


def test_nothing_scored_is_no_figure_and_no_warning(labels):
    summary = summarize((), labels, default_tolerance_mm=2.0)
    assert summary.mean_dice is summary.mean_hd95_mm is summary.mean_dice_present is None
    assert "mean over organs" in table(summary)


def test_json_and_csv_hold_what_was_scored(tmp_path, summary):
    path = tmp_path / "deep" / "summary.json"
    save_summary(path, summary)
    assert load_summary(path) == summary
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # neither NaN nor Infinity
    with open(path.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "organ", "dice", "nsd", "hd95_mm", "reference_ml", "prediction_ml"]
    assert [(row["case"], row["organ"]) for row in rows] == [(c, o) for c in "abc" for o in ("liver", "spleen")]
    assert float(rows[0]["dice"]) == 0.9
    assert [rows[3][column] for column in ("dice", "nsd", "hd95_mm", "reference_ml")] == [""] * 4
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["summary.csv", "summary.json"]


def test_a_damaged_summary_is_refused(tmp_path, summary):
    path = tmp_path / "summary.json"
    save_summary(path, summary)
    path.write_text(path.read_text(encoding="utf-8").replace('"mean_dice"', '"mean_dize"'))
    with pytest.raises(DatasetError, match=r"mean_dize.*did you mean"):
        load_summary(path)
    text = path.read_text(encoding="utf-8").replace('"mean_dize"', '"mean_dice"')
    path.write_text(text.replace('"schema_version": 1', '"schema_version": 7'), encoding="utf-8")
    with pytest.raises(DatasetError, match="schema_version 7"):
        load_summary(path)


def test_the_table_has_a_row_per_organ_in_straight_columns(summary):
    lines = table(summary).splitlines()
    header, rule = lines[:2]
    liver = next(line for line in lines if line.startswith("liver"))
    assert set(rule) == {"-"}
    assert len(rule) >= max(len(header), len(liver))
    assert liver[header.index("Dice") :].startswith("0.567 ± 0.493")
    assert liver[header.index("NSD") :].startswith("0.533")
    assert liver[header.index("HD95") :].startswith("3.0 ± 1.4")
    assert any(line.startswith("mean over organs") and "0.633" in line for line in lines)
    assert any(line.startswith("mean where present") and "0.483" in line for line in lines)
    assert any("counted nowhere: y, z" in line for line in lines)


def test_the_table_says_what_was_special(labels, summary):
    tubes = dataclasses.replace(
        labels, labels=tuple(dataclasses.replace(label, z_range=label.name == "spleen") for label in labels.labels)
    )
    text = table(summarize(CASES, tubes, default_tolerance_mm=2.5, official=True))
    assert "spleen *" in text
    assert "liver *" not in text
    assert "official" in text
    assert "official" not in table(summary)


def test_folders_are_scored_and_the_default_tolerance_found(tmp_path, labels, write_map, caplog):
    for name in "ab":
        write_map(tmp_path / "r" / f"{name}.nii.gz", spacing=(3.0, 1.0, 1.0))
        write_map(tmp_path / "p" / f"{name}.nii.gz", spacing=(3.0, 1.0, 1.0), spleen=1)
    write_map(tmp_path / "p" / "unasked.nii.gz")
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", labels, annotated={"b": ("liver",)})
    assert [each.tolerance_mm for each in summary.organs] == [1.0, 3.0]
    assert [each.cases for each in summary.organs] == [2, 1]
    assert summary.organs[0].dice.mean == 1.0
    assert summary.organs[1].dice.mean == pytest.approx(0.75)
    assert summary.organs[1].nsd.mean == 1.0
    assert "unasked" in caplog.text


def test_missing_predictions_are_an_error_unless_allowed(tmp_path, labels, write_map):
    for name in "abc":
        write_map(tmp_path / "r" / f"{name}.nii.gz")
    write_map(tmp_path / "p" / "b.nii.gz")
    with pytest.raises(DatasetError, match="2 of 3 cases have no prediction: a, c"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", labels)
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", labels, allow_missing=True)
    assert summary.missing == ("a", "c")
    assert summary.mean_dice == 1.0
    (tmp_path / "p" / "b.nii.gz").rename(tmp_path / "p" / "other.nii.gz")
    with pytest.raises(DatasetError, match="3 of 3 cases"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", labels, allow_missing=True)


def test_a_tolerance_larger_than_the_organs_is_said_and_small_distances_keep_their_digits(
    tmp_path, labels, write_map, caplog
):
    spacing = (0.001, 0.001, 0.001)
    write_map(tmp_path / "r" / "a.nii.gz", spacing=spacing)
    write_map(tmp_path / "p" / "a.nii.gz", spacing=spacing, liver=7, spleen=5)  # no voxel agrees
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", labels)
    assert summary.organs[1].dice.mean == 0.0
    assert summary.organs[1].nsd.mean == 1.0  # which says nothing
    (caution,) = summary.cautions
    assert "the NSD says nothing" in caution
    assert "liver (1 of 1 case(s), from 0.0074 mm), spleen (1 of 1 case(s), from 0.0057 mm)" in caution
    assert caution in caplog.text
    assert f"caution: {caution}" in table(summary)
    rows = {line.split()[0]: line for line in table(summary).splitlines()}
    assert rows["liver"].endswith("  0.0070")
    assert rows["spleen"].endswith("  0.0050")
    save_summary(tmp_path / "s.json", summary)
    assert load_summary(tmp_path / "s.json") == summary


def test_tolerances_smaller_than_the_organs_are_not_said(tmp_path, labels, write_map, caplog):
    for folder in "rp":
        write_map(tmp_path / folder / "a.nii.gz")
    assert evaluate_folders(tmp_path / "p", tmp_path / "r", labels).cautions == ()
    assert "NSD" not in caplog.text
