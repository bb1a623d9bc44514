import dataclasses

import pytest

from flaresemi.errors import SelectionError
from flaresemi.geometry import BoundingBox
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import CaseFingerprint, DatasetFingerprint
from flaresemi.pseudolabels.selecting import LabeledVolumes, SelectionRule, select, volumes_ml
from flaresemi.selection import CaseScore, OrganScore, load_scores, save_scores

VOLUMES = {
    "liver": LabeledVolumes(least_ml=1000, most_ml=2000, absent=0),
    "gallbladder": LabeledVolumes(least_ml=10, most_ml=50, absent=3),
}


def case(name: str, liver: float | None, gallbladder: float | None = 0.9, **changes: object) -> CaseScore:
    def organ(agreement: float | None, volume: float) -> OrganScore:
        absent = agreement is None
        return OrganScore(
            agreement=agreement, volume_ml=0.0 if absent else volume, entropy=None if absent else 0.1, touched_faces=0
        )

    found = [value for value in (liver, gallbladder) if value is not None]
    score = CaseScore(
        case_id=name,
        score=sum(found) / len(found) if found else 0.0,
        organs={"liver": organ(liver, 1500.0), "gallbladder": organ(gallbladder, 30.0)},
    )
    return dataclasses.replace(score, **changes)  # type: ignore[arg-type]


def chosen(scores: list[CaseScore], rule: SelectionRule, round: int = 1) -> dict[str, tuple[str, ...]]:
    selection = select(scores, rule, VOLUMES, round=round, fold="0")
    everything = {selected.case_id for selected in selection.selected} | set(selection.rejected)
    assert everything == {score.case_id for score in scores}
    return {selected.case_id: selected.supervised for selected in selection.selected}


def test_a_good_liver_is_used_even_if_the_gallbladder_failed() -> None:
    result = chosen([case("a", 0.95, 0.2), case("b", 0.3, 0.1)], SelectionRule())
    assert result == {"a": ("liver",)}


def test_an_absence_is_trusted_only_where_labels_know_it() -> None:
    assert chosen([case("a", 0.95, None)], SelectionRule()) == {"a": ("liver", "gallbladder")}
    assert chosen([case("a", None, 0.95)], SelectionRule()) == {"a": ("gallbladder",)}


def test_specks_that_count_as_absent_are_not_learned_as_the_organ() -> None:
    score = case("a", 0.95, None)
    organs = score.organs | {"gallbladder": OrganScore(agreement=None, volume_ml=0.1, entropy=0.5)}
    selection = select([dataclasses.replace(score, organs=organs)], SelectionRule(), VOLUMES, round=1, fold="0")
    assert selection.selected[0].supervised == ("liver",)
    assert selection.selected[0].rejected == {"gallbladder": "specks only, which count as absent"}


def test_a_case_where_only_absences_are_accepted_teaches_nothing() -> None:
    assert chosen([case("a", 0.1, None), case("b", 0.9)], SelectionRule()) == {"b": ("liver", "gallbladder")}


def test_no_pseudo_label_of_an_organ_that_is_no_teacher_is_accepted() -> None:
    scores = [case("a", 0.95), case("b", 0.95, None)]
    selection = select(scores, SelectionRule(), VOLUMES, round=1, fold="0", no_teacher={"gallbladder": "too small"})
    assert [case.supervised for case in selection.selected] == [("liver",), ("liver",)]
    assert [case.rejected for case in selection.selected] == [{"gallbladder": "too small"}] * 2
    assert "no pseudo-label of gallbladder is learned from: too small" in selection.notes
    whole = select(scores, SelectionRule(rule="case"), VOLUMES, round=1, fold="0", no_teacher={"gallbladder": "small"})
    assert whole.selected[0].supervised == ("liver", "gallbladder")  # by whole cases, organs are not judged


@pytest.mark.parametrize(
    ("absent", "labeled_absent", "labeled_present", "believed"),
    [
        (6, 1, 11, False),  # 6 of 10 against one in twelve
        (2, 1, 11, True),  # one more than expected
        (4, 1, 3, True),
        (6, 1, 3, False),
        (9, 3, 1, True),
        (0, 1, 3, True),
    ],
)
def test_absences_that_are_far_more_frequent_than_in_labeled_cases_are_not_learned_from(
    absent: int, labeled_absent: int, labeled_present: int, believed: bool
) -> None:
    scores = [case(str(number), 0.95, None if number < absent else 0.95) for number in range(10)]
    gallbladder = LabeledVolumes(least_ml=10, most_ml=50, absent=labeled_absent, present=labeled_present)
    volumes = VOLUMES | {"gallbladder": gallbladder}
    selection = select(scores, SelectionRule(), volumes, round=1, fold="0")
    for chosen_case in selection.selected:
        accepted = believed or int(chosen_case.case_id) >= absent
        assert ("gallbladder" in chosen_case.supervised) == accepted
    assert any("no absence of gallbladder" in note for note in selection.notes) != believed


def test_predicted_dice_takes_the_place_of_agreement() -> None:
    score = case("a", 0.95, 0.95)
    organs = score.organs | {"liver": dataclasses.replace(score.organs["liver"], predicted_dice=0.5)}
    one_for_all = SelectionRule(organ_share=0.0)
    assert chosen([dataclasses.replace(score, organs=organs)], one_for_all) == {"a": ("gallbladder",)}


def test_a_value_just_below_its_cut_is_told_as_below_it() -> None:
    scores = [case(str(number), 0.95, agreement) for number, agreement in enumerate((0.9, 0.6545, 0.65396, 0.3))]
    selected = select(scores, SelectionRule(), VOLUMES, round=1, fold="0").selected
    assert {case.case_id: case.rejected.get("gallbladder") for case in selected} == {
        "0": None,
        "1": None,
        "2": "agreement 0.653 below 0.654",
        "3": "agreement 0.300 below 0.654",
    }


@pytest.mark.parametrize(
    ("agreements", "cut"),
    [
        ((0.95, 0.9, 0.85, 0.3), 0.8),  # enough of them pass
        ((0.9, 0.7, 0.6, 0.55, None), 0.7),  # two of the four that have it
        ((0.7, 0.65, 0.6), 0.65),  # rounded up
        ((0.5, 0.3, 0.2), 0.4),  # never below half of the threshold
        ((None, None), 0.8),
    ],
)
def test_the_threshold_of_an_organ_that_is_hard_to_draw_is_lower(
    agreements: tuple[float | None, ...], cut: float
) -> None:
    scores = [case(str(number), 0.95, agreement) for number, agreement in enumerate(agreements)]
    selection = select(scores, SelectionRule(), VOLUMES, round=1, fold="0")
    assert selection.organ_cuts == {"liver": 0.8, "gallbladder": cut}
    assert any(f"gallbladder {cut:g}" in note for note in selection.notes) == (cut < 0.8)
    for selected in selection.selected:
        agreement = agreements[int(selected.case_id)]
        assert ("gallbladder" in selected.supervised) == (agreement is None or agreement >= cut)
    assert select(scores, SelectionRule(organ_share=0.0), VOLUMES, round=1, fold="0").organ_cuts["gallbladder"] == 0.8


@pytest.mark.parametrize("change", [{"volume_ml": 5000.0}, {"volume_ml": 100.0}, {"touched_faces": 1}])
def test_implausible_organs_are_rejected_with_a_reason(change: dict) -> None:
    score = case("a", 0.95)
    organs = score.organs | {"liver": dataclasses.replace(score.organs["liver"], **change)}
    selection = select([dataclasses.replace(score, organs=organs)], SelectionRule(), VOLUMES, round=1, fold="0")
    assert selection.selected[0].supervised == ("gallbladder",)
    assert selection.selected[0].rejected["liver"]


def test_the_seeds_rule_takes_the_best_half_first() -> None:
    scores = [case(str(number), number / 10) for number in range(1, 10)]
    assert set(chosen(scores, SelectionRule(rule="case"))) == {"5", "6", "7", "8", "9"}


def test_the_seeds_rule_takes_scores_above_the_threshold_later() -> None:
    scores = [case(str(number), number / 10, number / 10) for number in range(1, 11)]
    assert set(chosen(scores, SelectionRule(rule="case", case_threshold=0.75), round=2)) == {"8", "9", "10"}


def test_too_few_above_the_threshold_falls_back_to_the_best_half_and_says_so() -> None:
    scores = [case(str(number), 0.5 + number / 100) for number in range(20)]
    selection = select(scores, SelectionRule(rule="case"), VOLUMES, round=2, fold="0")
    assert len(selection.selected) == 10
    assert "best 50%" in selection.notes[0]


def test_the_completeness_filter_is_an_option() -> None:
    scores = [case("whole", 0.9), case("operated", 0.99, None)]
    complete = SelectionRule(rule="case", require_complete=True, best_share=1.0)
    assert set(chosen(scores, complete)) == {"whole"}


def test_nothing_selected_is_one_clear_message() -> None:
    with pytest.raises(SelectionError, match="no pseudo-label is good enough"):
        select([case("a", 0.1, 0.1)], SelectionRule(), VOLUMES, round=1, fold="0")
    with pytest.raises(SelectionError, match="no unlabeled cases"):
        select([], SelectionRule(), VOLUMES, round=1, fold="0")


def test_nothing_rejected_is_noted() -> None:
    assert "rejected nothing" in select([case("a", 0.95)], SelectionRule(), VOLUMES, round=1, fold="0").notes[0]
    notes = select([case("a", 0.95, 0.1)], SelectionRule(), VOLUMES, round=1, fold="0").notes
    assert not any("rejected nothing" in note for note in notes)


def test_scores_survive_the_file(tmp_path) -> None:
    scores = (case("a", 0.123456789, None, flags=("one", "two"), made_with=("abc", "def")), case("b, c", None, None))
    save_scores(tmp_path / "scores.csv", scores)
    assert load_scores(tmp_path / "scores.csv") == scores


def test_a_damaged_score_file_is_a_clear_error(tmp_path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(SelectionError, match="not found"):
        load_scores(path)
    save_scores(path, (case("a", 0.5),))
    path.write_text(path.read_text(encoding="utf-8").replace("0.5", "half"))
    with pytest.raises(SelectionError, match="damaged"):
        load_scores(path)


@pytest.mark.parametrize("rule", [SelectionRule(), SelectionRule(rule="case", best_share=1.0)])
def test_a_barred_case_is_not_used_however_good_it_is(rule: SelectionRule) -> None:
    scores = [case("a", 0.99), case("b", 0.9)]
    selection = select(scores, rule, VOLUMES, round=1, fold="0", barred={"a": "of a held-out group", "c": "unknown"})
    assert [each.case_id for each in selection.selected] == ["b"]
    assert selection.rejected == {"a": "of a held-out group"}
    assert selection.notes == ()
    with pytest.raises(SelectionError, match="no pseudo-label may be used: of a held-out group"):
        select(scores[:1], rule, VOLUMES, round=1, fold="0", barred={"a": "of a held-out group"})


def test_volumes_are_of_the_cases_that_annotate_an_organ() -> None:
    box = BoundingBox(start=(0, 0, 0), stop=(4, 4, 4))
    names = ("liver", "spleen")
    labels = LabelSet(labels=tuple(Label(name=name, value=value) for value, name in enumerate(names, start=1)))
    cases = tuple(
        CaseFingerprint(
            case_id=case_id,
            shape_zyx=(4, 4, 4),
            spacing_zyx_mm=(5.0, 10.0, 10.0),
            body_box=box,
            foreground_box=box,
            voxels_per_label=voxels,
            annotated=annotated,
            ignored_voxels=ignored,
        )
        for case_id, voxels, annotated, ignored in (
            ("both", (20, 4), (True, True), 0),
            ("one", (30, 0), (True, False), 0),
            ("absent", (10, 0), (True, True), 0),
            ("lines", (2, 6), (True, True), 8),
            ("other", (9, 9), (True, True), 0),
        )
    )
    fingerprint = DatasetFingerprint(dataset_name="made", channels=("CT",), labels=labels, cases=cases, intensities=())
    asked = ("both", "one", "absent", "lines")
    assert volumes_ml(fingerprint, names, asked) == {"liver": [10.0, 15.0, 5.0], "spleen": [2.0, 0.0]}
    assert volumes_ml(fingerprint, names, asked, parts=True) == {"liver": [1.0], "spleen": [3.0]}
