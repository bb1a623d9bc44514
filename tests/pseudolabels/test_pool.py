import dataclasses
import weakref
from pathlib import Path

import numpy as np
import pytest

from flaresemi.compute.sharding import Shard
from flaresemi.errors import ConfigError, PredictionError
from flaresemi.io.case_store import CaseRecord
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import prepare
from flaresemi.pseudolabels.labeling import LabeledCase, Labeler
from flaresemi.pseudolabels.pool import PseudoLabels, label_pool
from flaresemi.pseudolabels.teachers import made_with, teacher_files
from flaresemi.rounds.state import RoundConfig
from flaresemi.workspace import ModelFolder, RoundFolder
from tests.inference.conftest import NEVER, make_body, make_image
from tests.pseudolabels.test_labeling import MEDIAN_ML, kidney_and_liver, labeler

pytestmark = pytest.mark.usefixtures("threshold_networks")


def test_a_case_without_a_usable_output_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = labeler(tmp_path, [(2.0, NEVER, 5.0)], make_body())
    prepared = prepare(make_image(make_body()), "ct")
    for case_id in ("a", "b", "c"):
        for stage, store in made.stores.items():
            plan = {made.teachers.fine.plan.stage: made.teachers.fine.plan}.get(stage) or made.teachers.coarse.plan  # type: ignore[union-attr]
            record = CaseRecord.unlabeled(case_id=case_id, preprocessing_hash="test", grid=prepared.grid(plan))
            store.write(record, prepared.stage_image(plan), None)
    label, scores = Labeler.label, []

    def label_but_one(self: Labeler, case_id: str) -> LabeledCase:
        assert all(each() is None for each in scores)  # a case that failed holds no memory
        if case_id == "b":
            own = np.zeros(9)
            scores.append(weakref.ref(own))
            raise PredictionError("case 'b': the output is not finite")
        return label(self, case_id)

    monkeypatch.setattr(Labeler, "label", label_but_one)
    folder = RoundFolder(tmp_path / "round", "0")
    with pytest.raises(PredictionError, match="case 'b': the output is not finite"):
        label_pool(made, PseudoLabels(folder, made.stores), ("a", "b", "c"), shard=Shard())
    assert sorted(path.name for path in folder.case_scores.iterdir()) == ["a.json", "c.json"]
    assert len(scores) == 1


def test_voxels_that_a_snapshot_contests_are_left_out_of_the_label_alone(tmp_path: Path) -> None:
    """Without the liver in one snapshot, its voxels are contested; what is scored and compared is whole."""
    made = labeler(tmp_path, [(2.0, NEVER, NEVER), (2.0, NEVER, 5.0)], kidney_and_liver())
    leaving_out = Labeler(
        made.teachers,
        made.fine_store,
        made.coarse_store,
        MEDIAN_ML,
        device="cpu",
        precision="fp32",
        ignore_contested=True,
    )
    whole, part = made.label("scan"), leaving_out.label("scan")
    assert whole.ignored_zyx is None and part.ignored_zyx is not None
    np.testing.assert_array_equal(part.label_zyx, whole.label_zyx)
    assert part.score == whole.score
    liver, kidney = (whole.label_zyx == made.labels.index(name) for name in ("liver", "right kidney"))
    assert part.ignored_zyx[liver].mean() > 0.9 and not part.ignored_zyx[kidney].any()
    labels = PseudoLabels(RoundFolder(tmp_path / "round", "0"), made.stores)
    labels.write(part, made.labels)
    for stage, store in labels.stores.items():
        record = store.open("scan").record
        found = np.asarray(store.open("scan").label_zyx)
        assert record.annotated_voxels == np.count_nonzero(found != made.labels.ignored) < found.size, stage
    stored = np.asarray(labels.stores[Stage.FINE].open("scan").label_zyx)
    np.testing.assert_array_equal(stored == made.labels.ignored, part.ignored_zyx)
    np.testing.assert_array_equal(stored[~part.ignored_zyx], whole.label_zyx[~part.ignored_zyx])
    labels.write(whole, made.labels)
    assert labels.stores[Stage.FINE].open("scan").record.annotated_voxels is None


def test_leaving_voxels_out_is_recorded_and_needs_a_value(tmp_path: Path) -> None:
    labels = LabelSet(labels=(Label(name="liver", value=1),))
    RoundConfig().refuse_unfit(labels, where=tmp_path)
    config = RoundConfig(ignore_contested=True)
    config.refuse_unfit(dataclasses.replace(labels, ignore=2), where=tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.json has no value for them"):
        config.refuse_unfit(labels, where=tmp_path)
    folder = ModelFolder(tmp_path / "FINE")
    for path in teacher_files(folder, None):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    assert made_with(folder, None, **config.labeling) == (*made_with(folder, None), "contested voxels ignored")
    assert made_with(folder, None, **RoundConfig().labeling) == made_with(folder, None)
