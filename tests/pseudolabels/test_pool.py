from pathlib import Path

import pytest

from flaresemi.compute.sharding import Shard
from flaresemi.errors import PredictionError
from flaresemi.io.case_store import CaseRecord
from flaresemi.preprocessing.preprocessor import prepare
from flaresemi.pseudolabels.labeling import LabeledCase, Labeler
from flaresemi.pseudolabels.pool import PseudoLabels, label_pool
from flaresemi.workspace import RoundFolder
from tests.inference.conftest import NEVER, ThresholdNetwork, make_body, make_image
from tests.pseudolabels.test_labeling import labeler


@pytest.fixture(autouse=True)
def _threshold_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flaresemi.networks.engine.build_network", ThresholdNetwork)
    monkeypatch.setattr("flaresemi.networks.engine.openvino_is_installed", lambda: False)


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
    label = Labeler.label

    def label_but_one(self: Labeler, case_id: str) -> LabeledCase:
        if case_id == "b":
            raise PredictionError("case 'b': the output is not finite")
        return label(self, case_id)

    monkeypatch.setattr(Labeler, "label", label_but_one)
    folder = RoundFolder(tmp_path / "round", "0")
    with pytest.raises(PredictionError, match="case 'b': the output is not finite"):
        label_pool(made, PseudoLabels(folder, made.stores), ("a", "b", "c"), shard=Shard())
    assert sorted(path.name for path in folder.case_scores.iterdir()) == ["a.json", "c.json"]
