"""Every reason stands for something a person can check, in words; what is decided has none left."""

import dataclasses

import numpy as np

from flaresemi.pseudolabels.selecting import LabeledVolumes
from flaresemi.review.queue import QueueFacts, misplaced_organs, queue
from flaresemi.reviews import Review
from flaresemi.selection import CaseScore, OrganScore, SelectedCase, Selection
from tests.review.made_review import MadeReview

VOLUMES = {name: LabeledVolumes(least_ml=40, most_ml=100, absent=0, present=4) for name in ("liver", "spleen")}


def score(case_id: str, **organs: tuple[float | None, float]) -> CaseScore:
    made = {
        name: OrganScore(agreement=trust, volume_ml=volume, entropy=None) for name, (trust, volume) in organs.items()
    }
    return CaseScore(case_id=case_id, score=0.9, organs=made)


def selection(rule: str = "organ", **cuts: float) -> Selection:
    chosen = SelectedCase(case_id="a", score=0.88, supervised=("liver",), rejected={})
    return Selection(round=1, fold="0", rule=rule, thresholds={}, selected=(chosen,), rejected={}, organ_cuts=cuts)


def reasons(found: CaseScore, **facts: object) -> dict[str, str]:
    made = QueueFacts(**{"cases": (found.case_id,), "scores": {found.case_id: found}, "volumes": VOLUMES} | facts)
    return {reason.kind: reason.text for item in queue(made) for reason in item.reasons}


def test_each_reason_in_words() -> None:
    assert reasons(score("a", liver=(0.95, 70), spleen=(0.9, 60))) == {}
    assert reasons(score("a", liver=(0.95, 210), spleen=(0.9, 60))) == {
        "volume": "liver 210 ml (labeled cases: 40 to 100 ml)"
    }
    assert reasons(score("a", liver=(None, 0), spleen=(0.9, 60))) == {
        "absent": "not found, though every labeled case has it: liver"
    }
    near = reasons(score("a", liver=(0.78, 70), spleen=(0.81, 60)), selection=selection(liver=0.8, spleen=0.8))
    told = "just below the cut: liver 0.78 (cut 0.80); just above the cut: spleen 0.81 (cut 0.80)"
    assert near == {"near the cut": told}
    whole = reasons(score("a", liver=(0.95, 70)), selection=selection("case"))
    assert whole == {"near the cut": "score 0.900, just above the cut of 0.880"}
    before = {"a": score("a", liver=(0.95, 30), spleen=(0.9, 61))}
    assert reasons(score("a", liver=(0.95, 70), spleen=(0.9, 60)), former=before) == {
        "changed between rounds": "the round before saw it otherwise: liver 30 to 70 ml"
    }
    assert reasons(score("a", liver=(0.9, 70)), unlike={"a": ("spacing along z is 10 mm",)}) == {
        "unlike the labeled cases": "spacing along z is 10 mm"
    }
    assert reasons(score("a", liver=(0.9, 70)), misplaced={"a": {"liver": 62.4}}) == {
        "position": "elsewhere than in labeled cases: liver by 62 mm"
    }
    touching = score("a", liver=(0.9, 70))
    organ = dataclasses.replace(touching.organs["liver"], touched_faces=2)
    assert set(reasons(dataclasses.replace(touching, organs={"liver": organ}))) == {"out of the region"}


def test_the_most_urgent_comes_first_and_what_is_decided_last() -> None:
    scores = {
        "bad": score("bad", liver=(0.9, 500), spleen=(None, 0)),
        "good": score("good", liver=(0.95, 70)),
        "doubtful": score("doubtful", liver=(0.95, 210)),
        "seen": score("seen", liver=(0.9, 500)),
    }
    review = Review(
        case_id="seen", revision=1, by="Ann", at="2026-05-01", fold="0", round=1, rejected=("liver",), looked_at="old"
    )
    held_out = {"real": ({"liver": 0.9, "spleen": 0.8}, {"liver": 0.7, "spleen": 0.8}), "kept": ({"liver": 0.9},) * 2}
    facts = QueueFacts(
        cases=(*scores, "new"), scores=scores, volumes=VOLUMES, reviews={"seen": review}, held_out=held_out
    )
    items = queue(facts)
    assert [item.case_id for item in items][:3] == ["bad", "doubtful", "real"]
    assert {item.case_id for item in items if not item.reasons} == {"good", "seen", "new"}
    assert items[2].reasons[0].text == "held out, and worse after the round: mean Dice -0.100, liver -0.20"
    again = queue(dataclasses.replace(facts, outdated=frozenset(["seen"])))
    kinds = {reason.kind for item in again if item.case_id == "seen" for reason in item.reasons}
    assert kinds == {"volume", "decided on an older label map"}


def test_an_organ_that_lies_elsewhere_is_the_only_one_that_is_named() -> None:
    rng = np.random.default_rng(3)
    usual = np.array([[0.0, 0, 0], [0, 80, 0], [0, 0, 90], [60, 0, 40], [0, -70, 30]])
    labeled = usual + rng.normal(0, 5, (6, 5, 3)) + rng.normal(0, 200, (6, 1, 3))  # scans begin anywhere
    assert misplaced_organs(usual, labeled) == {}
    moved = usual.copy()
    moved[3] += [150, 0, 0]
    found = misplaced_organs(moved, labeled)
    assert list(found) == [3]
    assert 100 < found[3] < 150
    moved[1] = np.nan
    assert list(misplaced_organs(moved, labeled)) == [3]
    assert misplaced_organs(moved, labeled[:1]) == {}


def test_a_cut_amid_all_scores_is_near_the_closest_tenth_alone_and_the_lower_score_comes_first() -> None:
    cases = {
        f"{place:02d}": dataclasses.replace(
            score(f"{place:02d}", liver=(0.46 + 0.001 * (place - 20), 70)), score=1 - place / 40
        )
        for place in range(40)
    }
    facts = QueueFacts(cases=(*cases,), scores=cases, volumes=VOLUMES, selection=selection(liver=0.46))
    items = [item for item in queue(facts) if item.reasons]
    assert [item.case_id for item in items] == ["22", "21", "20", "19", "18"]  # of equal distance, all
    assert {item.priority for item in items} == {0.7}
    whole = QueueFacts(cases=(*cases,), scores=cases, selection=selection("case"))
    assert [item.case_id for item in queue(whole) if item.reasons] == ["06", "05", "04", "03"]  # the cut is 0.88


def test_a_workspace_gives_the_faults_that_were_made(kept: MadeReview) -> None:
    material = kept.material()
    assert material.newest == 2
    items, suggestions = material.queue()
    found = {item.case_id: {reason.kind for reason in item.reasons} for item in items}
    assert {"absent", "changed between rounds"} <= found["phantom_0004"]
    assert "position" in found["phantom_0005"] or "volume" in found["phantom_0005"]
    assert {each.case_id for each in suggestions} == {"phantom_0004", "phantom_0005", "phantom_0006"}
