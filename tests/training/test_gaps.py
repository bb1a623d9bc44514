"""What is said, before a training, of the cases that it learns from."""

import dataclasses

import numpy as np
import pytest

from flaresemi.planning.fingerprint import fingerprint_dataset
from flaresemi.plans import Stage
from flaresemi.training.task import load_prepared, tell_gaps
from tests.training.conftest import Student


@pytest.mark.parametrize(("vanished", "said"), [(0, False), (1, True), (2, False)])
def test_organs_that_vanish_in_some_training_cases_are_told(
    student: Student,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    vanished: int,
    said: bool,
) -> None:
    """Those that vanish in all are told otherwise: no training case has them."""
    prepared = load_prepared(student.workspace)
    prepared = dataclasses.replace(prepared, fingerprint=fingerprint_dataset(student.data.load(), None, workers=1))
    store, (first, *others) = prepared.stores[Stage.COARSE], prepared.splits.fold("0").train
    assert len(others) == 1
    read = type(store).record

    def record(self: object, case_id: str) -> object:
        found = read(store, case_id)
        lost = case_id in (first, *others)[:vanished]
        counts = np.array(found.voxels_per_label) * ((0, 1) if lost else (1, 1))
        return dataclasses.replace(found, voxels_per_label=tuple(counts.tolist()))

    monkeypatch.setattr(type(store), "record", record)
    monkeypatch.setattr("flaresemi.training.task.check_prepared", lambda *_: None)  # their files have these voxels
    tell_gaps(prepared.task(Stage.COARSE, "0"), mirrors=False, enabled=True)
    vanishing = "nothing is left of organ 5 in 1 of 2 training cases that have it"
    assert (vanishing in caplog.text) == said
    assert ("no training case of COARSE has organ 5" in caplog.text) == (vanished == 2)
    assert "organ 200" not in caplog.text
