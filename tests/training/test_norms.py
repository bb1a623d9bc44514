"""What a training says of the look of its labeled cases, for the images that are predicted later."""

import dataclasses

import pytest

from flaresemi.appearance import far_from
from flaresemi.geometry import BoundingBox
from flaresemi.io.images import read_image
from flaresemi.planning.fingerprint import fingerprint_dataset
from flaresemi.plans import Stage
from flaresemi.preprocessing.looks import look_at
from flaresemi.preprocessing.preprocessor import prepare
from flaresemi.training.task import load_prepared
from tests.training.conftest import Student


def test_labeled_images_are_near_where_the_plans_crop_nothing(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bodies were measured by a rule that the plans do not follow, since it cuts off what is labeled."""
    measured = fingerprint_dataset(student.data.load(), None, workers=1)
    small = BoundingBox(start=(8, 8, 8), stop=(14, 14, 14))
    cases = tuple(dataclasses.replace(case, body_box=small, body_share=0.01) for case in measured.cases)
    loaded = load_prepared(student.workspace)
    prepared = dataclasses.replace(
        loaded,
        plans=dataclasses.replace(loaded.plans, body="whole"),
        fingerprint=dataclasses.replace(measured, cases=cases),
    )
    monkeypatch.setattr("flaresemi.training.task.check_prepared", lambda *_: None)  # they are, for other plans
    norms = prepared.task(Stage.FINE, "0").norms
    assert "the body's size along z" in {norm.quantity for norm in norms}
    for number in range(3):
        image = read_image([student.data.image_path("labeled", f"l{number}")])
        assert far_from(norms, look_at(prepare(image, "whole")), prepared.plans.channels) == []
