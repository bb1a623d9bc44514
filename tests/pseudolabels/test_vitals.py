"""Organs that a round is losing: told from those that are merely cleaned, or vary, by constructed volumes and Dice."""

import numpy as np
import pytest

from flaresemi.pseudolabels.vitals import OrganVitals, Vitals, compared, no_teacher, spread
from flaresemi.selection import CaseScore, OrganScore

LABELED = {"liver": [1400.0, 1500.0, 1600.0, 1800.0], "adrenal": [4.0, 5.0, 5.0, 6.5], "gallbladder": [30, 40, 20, 0.0]}
MEDIANS = {"liver": 1550.0, "adrenal": 5.0, "gallbladder": 30.0}


def seen(name: str, cases: int = 32, dice: dict[str, float] | None = None, **parts: float) -> Vitals:
    """Models that find each organ with this part of its usual volume, varying from case to case as patients do."""
    rng = np.random.default_rng(3)  # the same patients for all models
    sizes = [{organ: ml * rng.lognormal(0, 0.25) for organ, ml in MEDIANS.items()} for _ in range(cases)]
    noise = np.random.default_rng(list(name.encode()))
    volumes = {
        f"case_{i:02d}": {organ: ml * parts.get(organ, 1.0) * noise.lognormal(0, 0.1) for organ, ml in case.items()}
        for i, case in enumerate(sizes)
    }
    dices = {"liver": 0.95, "adrenal": 0.7, "gallbladder": 0.8} | (dice or {})
    labeled = {
        f"real_{i}": {organ: float(np.clip(d + noise.normal(0, 0.02), 0, 1)) for organ, d in dices.items()}
        for i in range(4)
    }
    return Vitals(made_with=(name,), dice=labeled, volumes_ml=volumes)


def vanishing(before: Vitals, after: Vitals, start: Vitals | None = None) -> dict[str, str]:
    organs = compared(start or before, before, after, LABELED)
    return {name: organ.warning for name, organ in organs.items() if organ.warning}


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_round_raises_no_alarm(seed: int) -> None:
    """Students that segment a little more or less, or fit the labeled cases less closely, are none."""
    rng = np.random.default_rng(seed)
    parts = {organ: float(rng.uniform(0.93, 1.1)) for organ in MEDIANS}
    dice = {"liver": 0.93, "adrenal": 0.7 - rng.uniform(0, 0.15), "gallbladder": 0.75}
    assert not vanishing(seen(f"before {seed}"), seen(f"after {seed}", dice=dice, **parts))


def test_an_organ_that_shrinks_in_the_pool_is_vanishing() -> None:
    found = vanishing(seen("before"), seen("after", adrenal=0.6))
    assert list(found) == ["adrenal"]
    assert "of its usual volume is missing in unlabeled cases" in found["adrenal"]
    assert found["adrenal"].endswith("before it")


def test_an_organ_that_is_not_found_in_a_third_of_the_cases_is_vanishing() -> None:
    after = seen("after")
    for case in list(after.volumes_ml)[::3]:
        after.volumes_ml[case]["adrenal"] = 0.0
    found = compared(seen("before"), seen("before"), after, LABELED)["adrenal"]
    assert (found.found_before, round(found.found, 2)) == (1.0, 0.66)
    assert found.warning


def test_what_is_cleaned_of_what_did_not_belong_to_it_is_not_vanishing() -> None:
    assert not vanishing(seen("before", adrenal=2.0), seen("after"))
    assert not vanishing(seen("before", gallbladder=1.7), seen("after", gallbladder=0.9))  # labeled ones miss more


def test_many_small_losses_are_one_since_the_start() -> None:
    start, before, after = seen("start"), seen("before", adrenal=0.88), seen("after", adrenal=0.79)
    assert not vanishing(before, after)
    (why,) = vanishing(before, after, start).values()
    assert why.endswith("at the start")


def test_an_organ_that_is_lost_in_two_of_few_cases_is_no_alarm() -> None:
    """Nor is anything in fewer than five."""
    after = seen("after", cases=8)
    for case in list(after.volumes_ml)[:2]:
        after.volumes_ml[case]["adrenal"] = 0.0
    assert not vanishing(seen("before", cases=8), after)
    assert not vanishing(seen("before", cases=4), seen("after", cases=4, adrenal=0.01))


def test_an_organ_that_is_forgotten_in_labeled_cases_is_vanishing() -> None:
    found = vanishing(seen("before"), seen("after", dice={"adrenal": 0.35}))
    assert list(found) == ["adrenal"]
    assert "its Dice on labeled cases of the training is 0.3" in found["adrenal"]


def test_students_that_fit_all_organs_less_closely_forget_none() -> None:
    less = {"liver": 0.87, "adrenal": 0.45, "gallbladder": 0.70}
    assert not vanishing(seen("before", dice={"adrenal": 0.65}), seen("after", dice=less))
    less = {"liver": 0.86, "adrenal": 0.28, "gallbladder": 0.71}  # hardly more than the others
    assert not vanishing(seen("before", dice={"adrenal": 0.45}), seen("after", dice=less))
    assert set(vanishing(seen("before"), seen("after", dice=dict.fromkeys(MEDIANS, 0.2)))) == set(MEDIANS)


def test_an_organ_that_no_labeled_case_has_is_not_looked_at() -> None:
    assert list(compared(seen("a"), seen("a"), seen("b"), {"liver": LABELED["liver"], "adrenal": [0.0, 0.0]})) == [
        "liver"
    ]


def scores(vitals: Vitals) -> list[CaseScore]:
    def organ(volume_ml: float) -> OrganScore:
        return OrganScore(agreement=0.9 if volume_ml else None, volume_ml=volume_ml, entropy=0.1 if volume_ml else None)

    return [
        CaseScore(case_id=case, score=0.9, organs={name: organ(volume) for name, volume in volumes.items()})
        for case, volumes in vitals.volumes_ml.items()
    ]


def barred(vitals: Vitals, labeled: dict[str, list[float]] = LABELED) -> dict[str, str]:
    return no_teacher(scores(vitals), vitals, labeled, least_dice=0.4)


def test_healthy_labels_teach_all_organs() -> None:
    for seed in range(20):
        assert not barred(seen(f"teacher {seed}", adrenal=0.85, liver=1.1))


def test_an_organ_that_is_labeled_too_small_is_no_teacher() -> None:
    found = barred(seen("teacher", adrenal=0.4))
    assert list(found) == ["adrenal"]
    assert "missing in unlabeled cases, 5% in labeled ones" in found["adrenal"]


def test_two_labeled_cases_say_less_of_usual_volumes_than_ten() -> None:
    half = seen("teacher", adrenal=0.73)
    assert not barred(half, LABELED | {"adrenal": [5.0, 5.0]})
    assert barred(half, LABELED | {"adrenal": [5.0] * 10})
    assert not barred(seen("teacher", adrenal=0.1), LABELED | {"adrenal": [5.0]})  # of one case, nothing is known


def test_an_organ_that_is_missed_too_often_is_no_teacher() -> None:
    teacher = seen("teacher")
    for case in list(teacher.volumes_ml)[::2]:
        teacher.volumes_ml[case]["adrenal"] = 0.0
    assert list(barred(teacher)) == ["adrenal"]


def test_an_organ_that_was_never_learned_is_no_teacher_where_others_were() -> None:
    found = barred(seen("teacher", dice={"adrenal": 0.3}))
    assert list(found) == ["adrenal"]
    assert found["adrenal"].startswith("Dice 0.")
    assert not barred(seen("teacher", dice=dict.fromkeys(MEDIANS, 0.2)))  # a start that knows nothing yet


def test_the_same_cases_are_looked_at_each_time() -> None:
    cases = [f"case_{number:04d}" for number in range(1000)]
    found = spread(cases[::-1], 32)
    assert found == spread(cases, 32)
    assert (len(found), found[0], found[-1]) == (32, cases[0], cases[-1])
    assert spread(["b", "a"], 32) == ("a", "b")


def test_vitals_are_found_again_in_their_file(tmp_path) -> None:
    from flaresemi.records import load_record, save_record

    vitals = Vitals(
        made_with=("a",),
        dice={"real_0": {"liver": 0.5}},
        volumes_ml={"case": {"liver": 2.0}},
        organs={
            "liver": OrganVitals(
                labeled_ml=3.0, found_before=1.0, found=0.5, volume_before_ml=2.0, volume_ml=1.0, missing_before=0.1,
                missing=0.6, missing_labeled=0.1, dice_before=None, dice=0.5, warning="half of it",
            )
        },
    )  # fmt: skip
    save_record(tmp_path / "vitals.json", vitals)
    assert load_record(tmp_path / "vitals.json", Vitals) == vitals
    assert vitals.vanishing == {"liver": "half of it"}
