"""What keeps a round from teaching an organ away, and who is told that one is vanishing."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.pseudolabels.vitals import OrganVitals, Vitals, volumes_of_pool
from flaresemi.records import save_record
from flaresemi.rounds.chain import ChainState
from flaresemi.rounds.protection import Protection, vanishing_organs
from flaresemi.rounds.stopping import Verdict
from flaresemi.selection import CaseScore, OrganScore
from flaresemi.workspace import Workspace

LABELED = {"liver": [1400.0, 1500.0, 1600.0], "spleen": [150.0, 200.0, 220.0], "tumor": [0.0, 0.0, 0.0]}


def vitals(vanishing: str = "", **dice: float) -> Vitals:
    healthy = OrganVitals(
        labeled_ml=100.0, found_before=1.0, found=1.0, volume_before_ml=100.0, volume_ml=100.0, missing_before=0.1,
        missing=0.1, missing_labeled=0.1, dice_before=0.9, dice=0.9,
    )  # fmt: skip
    organs = {
        name: dataclasses.replace(healthy, warning="half is missing" if name == vanishing else "")
        for name in ("liver", "spleen")
    }
    return Vitals(made_with=("a",), dice={"real": {"liver": 0.9, "spleen": 0.8} | dice}, volumes_ml={}, organs=organs)


def scores(spleen_ml: float = 190.0) -> list[CaseScore]:
    def organ(volume_ml: float) -> OrganScore:
        return OrganScore(agreement=0.9, volume_ml=volume_ml, entropy=0.1)

    organs = {"liver": organ(1500.0), "spleen": organ(spleen_ml), "tumor": organ(0.0)}
    return [CaseScore(case_id=f"case_{number}", score=0.9, organs=organs) for number in range(12)]


@pytest.fixture
def second(tmp_path: Path) -> Protection:
    """Of a round whose predecessor lost nothing."""
    made = Protection(workspace=Workspace(tmp_path), fold="0", number=2, training=("real",), labeled_ml=LABELED)
    save_record(made.workspace.round("0", 1).vitals, vitals())
    save_record(made.workspace.round("0", 2).vitals_before, vitals())
    return made


def test_after_a_healthy_round_every_organ_is_taught(second: Protection) -> None:
    assert second.barred(scores(), SelectionRule()) == {}


def test_what_the_round_before_was_losing_is_not_taught(second: Protection) -> None:
    save_record(second.workspace.round("0", 1).vitals, vitals(vanishing="spleen"))
    assert second.barred(scores(), SelectionRule()) == {"spleen": "vanishing in round 1: half is missing"}
    assert second.barred(scores(), SelectionRule(rule="case")) == {}
    second.workspace.round("0", 1).vitals.unlink()  # a round of an older version
    assert second.barred(scores(), SelectionRule()) == {}


def test_what_was_never_learned_or_is_labeled_too_small_is_not_taught(second: Protection) -> None:
    assert list(second.barred(scores(spleen_ml=60.0), SelectionRule())) == ["spleen"]
    save_record(second.workspace.round("0", 2).vitals_before, vitals(spleen=0.35))
    assert list(second.barred(scores(), SelectionRule())) == ["spleen"]
    assert second.barred(scores(), SelectionRule(organ_threshold=0.6)) == {}  # who asks for less gets it


def test_where_every_organ_would_be_barred_none_is(second: Protection, caplog: pytest.LogCaptureFixture) -> None:
    save_record(second.workspace.round("0", 2).vitals_before, vitals(liver=0.1))
    assert second.barred(scores(spleen_ml=10.0), SelectionRule()) == {}
    assert "no organ well enough" in caplog.text


def test_an_organ_that_a_model_from_outside_does_not_know_vanishes_beside_the_supervised_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Protection(workspace=Workspace(tmp_path), fold="0", number=1, training=("real",), labeled_ml=LABELED)
    folder = first.workspace.round("0", 1)
    cases = [f"case_{number}" for number in range(12)]

    def seen(made_with: str, spleen_ml: float, dice: float) -> Vitals:
        volumes = {case: {"liver": 1500.0, "spleen": spleen_ml, "tumor": 0.0} for case in cases}
        return Vitals(made_with=(made_with,), dice={"real": {"liver": 0.9, "spleen": dice}}, volumes_ml=volumes)

    class Students:
        made_with = ("students",)

        def __call__(self, look: Callable[..., object], case_ids: Sequence[str]) -> dict[str, dict[str, float]]:
            students = seen("students", 0.0, 0.0)
            return students.volumes_ml if look is volumes_of_pool else students.dice

    save_record(folder.vitals_before, seen("outside", 0.0, 0.0))
    first.look_after(Students())  # type: ignore[arg-type]
    assert vanishing_organs(first.workspace, ("0",), 1) == {}
    save_record(folder.vitals_start, seen("supervised", 190.0, 0.8))
    first.look_after(Students())  # type: ignore[arg-type]
    assert vanishing_organs(first.workspace, ("0",), 1).keys() == {"spleen"}
    assert "spleen is vanishing" in caplog.text


def test_what_no_labeled_case_measures_is_not_learned_from_a_model_from_outside(second: Protection) -> None:
    reached = second.dice_reached([])
    assert reached == {"liver": 0.9, "spleen": 0.8}
    assert second.barred(scores(), SelectionRule(), reached) == {}  # the tumor is in no labeled case anyway
    save_record(
        second.workspace.round("0", 2).vitals_before, dataclasses.replace(vitals(), dice={"real": {"liver": 0.9}})
    )
    reached = second.dice_reached([])
    assert second.barred(scores(), SelectionRule(), reached) == {
        "spleen": "its Dice is not measured on any labeled case"
    }
    assert second.barred(scores(), SelectionRule(rule="case"), reached) == {}
    assert second.barred(scores(), SelectionRule()) == {}  # others are judged by their agreement


def test_an_organ_is_vanishing_when_half_of_the_chains_say_so(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for fold, organ in (("0", "spleen"), ("1", ""), ("2", "")):
        save_record(workspace.round(fold, 1).vitals, vitals(vanishing=organ))
    assert vanishing_organs(workspace, ("0",), 1) == {"spleen": "half is missing"}
    assert vanishing_organs(workspace, ("0", "1"), 1) == {"spleen": "half is missing"}
    assert vanishing_organs(workspace, ("0", "1", "2"), 1) == {}
    assert vanishing_organs(workspace, ("0",), 2) == {}


def test_the_chains_say_in_words_what_is_vanishing() -> None:
    state = ChainState(folds=("all",), rounds=1, mean_dice=(), verdict=None)
    assert state.told == "1 complete round; nothing is held out to judge by"
    assert dataclasses.replace(state, vanishing={"spleen": "half is missing"}).told.splitlines()[1:] == [
        "spleen is vanishing in round 1: half is missing",
        "a next round teaches no pseudo-label of it, unless whole cases are selected; the supervised models know it "
        "better",
    ]
    verdict = Verdict(best_round=2, stop=True, why="round 2: it rose")
    judged = dataclasses.replace(state, rounds=2, mean_dice=(0.5, 0.6, 0.7), verdict=verdict)
    assert "a model from outside" not in judged.told
    assert "a model from outside labeled round 1" in dataclasses.replace(judged, taught_outside=True).told
    assert judged.told.splitlines()[:2] == [
        "mean Dice of the held-out cases: start 0.5000, round 1 0.6000, round 2 0.7000",
        "round 2: it rose; best round: 2; the chain ends here",
    ]
