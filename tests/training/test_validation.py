"""What a validation decides of an organ's pieces, beside what the labeled cases say of them."""

import dataclasses

import pytest

from flaresemi.cli import train
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.plans import Stage
from flaresemi.records import load_record, save_record
from flaresemi.training import anatomy
from flaresemi.training.task import load_task
from flaresemi.training.validation import CaseResult, conclude_validation, organs_to_clean
from tests.training.conftest import Student

NAMES = ("liver", "spleen", "aorta")


def results(count: int, **gains: float) -> list[CaseResult]:
    """Of so many cases, with these gains in one of them and none in the others."""
    without = CaseResult(largest_component_gain=dict.fromkeys(gains, 0.0))
    scaled = CaseResult(largest_component_gain={name: gain * count for name, gain in gains.items()})
    return [scaled, *[without] * (count - 1)]


@pytest.mark.parametrize(
    ("count", "gains", "expected"),
    [
        (1, {}, ("liver", "spleen")),  # none of them is there
        (2, {"liver": 0.0, "spleen": 0.0, "aorta": 0.0}, ("liver", "spleen")),  # no stray piece in two cases
        (2, {"liver": -0.001, "spleen": 0.0, "aorta": 0.001}, ("liver", "spleen")),
        (2, {"liver": -0.01, "spleen": 0.0, "aorta": 0.01}, ("spleen", "aorta")),
        (9, {"liver": 0.0, "spleen": 0.0, "aorta": 0.0}, ("liver", "spleen")),
        (10, {"liver": 0.0, "spleen": 0.01, "aorta": 0.01}, ("spleen", "aorta")),  # enough to decide alone
    ],
)
def test_few_held_out_cases_do_not_outweigh_the_labeled_ones(
    count: int, gains: dict[str, float], expected: tuple[str, ...]
) -> None:
    assert organs_to_clean(("liver", "spleen"), results(count, **gains), NAMES) == expected


def test_what_the_labeled_cases_say_holds_again_where_a_later_validation_has_nothing_against_it(
    student: Student, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(anatomy, "LEAST_CASES", 2)
    quick = ["--iterations", "1", "--loader-workers", "0", "--device", "cpu", "--precision", "fp32"]
    assert train.main(["COARSE", "0", *student.words, *quick, "--augmentation", "none"]) == 0
    task, coarse = load_task(student.workspace, Stage.COARSE, "0"), student.workspace.model("0", Stage.COARSE)
    (record,) = (path for path in coarse.validation.glob("*.json") if path.stem in task.validation)
    result, kept = load_record(record, CaseResult), []
    one, other = task.labels.names
    for gains in ({one: 0.0, other: -0.1}, {one: 0.0, other: 0.0}):
        save_record(record, dataclasses.replace(result, largest_component_gain=gains))
        told = conclude_validation(task, coarse, student.data.load())
        kept.append(load_checkpoint(coarse.final).keep_largest)
        assert f"the largest component of {', '.join(kept[-1])}: one piece in every labeled case" in told
    assert kept == [(one,), (one, other)]
