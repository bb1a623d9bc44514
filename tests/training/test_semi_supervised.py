import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flaresemi.errors import ConfigError, SelectionError
from flaresemi.io.case_store import CaseRecord, CaseStore, LabelStore
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.selection import SelectedCase, Selection
from flaresemi.training import losses
from flaresemi.training.config import TrainingConfig
from flaresemi.training.mixing import Mixing
from flaresemi.training.sampling import TrainingCase
from flaresemi.training.semi_supervised import SemiSupervisedTrainer, SemiSupervision
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer
from flaresemi.training.trainers import with_pseudo_labels
from tests.training.conftest import SHAPE

CPU = torch.device("cpu")

#: Which organs a patch supervises where one of both balls is trusted: that one, or mirrored what it becomes.
ONE_BALL = {(True, False, True), (True, True, False)}


@pytest.fixture
def semi(store: CaseStore, tmp_path: Path) -> SemiSupervision:
    """Two unlabeled scans whose pseudo-labels say 'right ball' everywhere in a corner; only that organ is trusted."""
    labels = LabelStore(tmp_path / "labels", store)
    selected = []
    for number in range(2):
        source = store.open(f"case_{number}")
        case_id = f"scan_{number}"
        record = CaseRecord.unlabeled(case_id=case_id, preprocessing_hash="test", grid=source.record.grid)
        store.write(record, np.asarray(source.image_czyx, np.float32), None)
        label = np.zeros(SHAPE, np.uint8)
        label[:12, :12, :12] = 2
        labels.write_labels(case_id, label, organs=2, supervised=(2,))
        selected.append(
            SelectedCase(
                case_id=case_id, score=0.9, supervised=("right ball",), rejected={"left ball": "agreement"}, weight=0.5
            )
        )
    selection = Selection(round=1, fold="0", rule="organ", thresholds={}, selected=tuple(selected), rejected={})
    mixing = Mixing(pseudo_share=0.75, paste_share=0.0)
    return SemiSupervision(labels=dict.fromkeys(("scan_0", "scan_1"), labels), selection=selection, mixing=mixing)


def mixed(semi: SemiSupervision, **changes: float) -> SemiSupervision:
    return dataclasses.replace(semi, mixing=dataclasses.replace(semi.mixing, **changes))


def test_patches_come_from_both_in_the_asked_ratio(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    trainer = SemiSupervisedTrainer(make_task(), quick_config, semi, device=CPU)
    batches = [trainer.sampler[(iteration, 0)] for iteration in range(200)]
    pseudo = [batch for batch in batches if batch.weight_b[0] == 0.5]
    assert 0.6 < len(pseudo) / len(batches) < 0.9
    supervised = {tuple(batch.supervised_bc[0].tolist()) for batch in pseudo}
    assert supervised == ONE_BALL, "the rejected organ is not supervised there, nor its partner in a mirrored patch"
    for batch in batches:
        if batch.weight_b[0] == 1:
            assert batch.supervised_bc.all()


def test_boxes_are_pasted_between_the_two_kinds_as_often_as_asked(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    """A labeled patch with a box of a pseudo-labeled one does not supervise what is rejected there."""
    trainer = SemiSupervisedTrainer(make_task(), quick_config, mixed(semi, paste_share=0.5), device=CPU)
    batches = [trainer.sampler[(iteration, 0)] for iteration in range(300)]
    labeled = [tuple(batch.supervised_bc[0].tolist()) for batch in batches if batch.weight_b[0] == 1]
    pasted = [supervised for supervised in labeled if supervised in ONE_BALL]
    assert set(pasted) == ONE_BALL
    assert labeled.count((True, True, True)) == len(labeled) - len(pasted)
    assert 0.3 < len(pasted) / len(labeled) < 0.7


class DrawsSomeOften(Trainer):
    """Of the labeled cases, the last one nine times as often."""

    def training_cases(self) -> list[TrainingCase]:
        *cases, last = super().training_cases()
        return [*(dataclasses.replace(case, share=2.0) for case in cases), dataclasses.replace(last, share=18.0)]


def test_labeled_cases_keep_the_shares_that_a_trainer_gives_them(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    trainer = with_pseudo_labels(DrawsSomeOften)(make_task(), quick_config, semi, device=CPU)
    np.testing.assert_allclose(trainer.sampler.probabilities(0), [0.025, 0.225, 0.375, 0.375])
    first, second = semi.selection.selected  # a person corrected one, which counts like the labeled ones do on average
    selection = dataclasses.replace(semi.selection, selected=(dataclasses.replace(first, source="corrected"), second))
    corrected = dataclasses.replace(semi, selection=selection)
    trainer = with_pseudo_labels(DrawsSomeOften)(make_task(), quick_config, corrected, device=CPU)
    np.testing.assert_allclose(trainer.sampler.probabilities(0), [0.05 / 3, 0.45 / 3, 0.25 / 3, 0.75])
    plain = SemiSupervisedTrainer(make_task(), quick_config, semi, device=CPU)
    assert plain.sampler.probabilities(0).tolist() == [0.125, 0.125, 0.375, 0.375]


def test_pseudo_cases_are_augmented_more_strongly(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    trainer = SemiSupervisedTrainer(make_task(), quick_config, semi, device=CPU)
    strengths = {case.case_id: case.augmentation for case in trainer.sampler.cases}
    assert strengths == {"case_0": "standard", "case_1": "standard", "scan_0": "strong", "scan_1": "strong"}
    assert set(trainer.sampler.augmentations) == {"standard", "strong"}


def test_only_supervised_trainings_count_organs_with_roots(
    make_task: Callable[..., TrainingTask],
    quick_config: TrainingConfig,
    semi: SemiSupervision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "MANY_ORGANS", 1)
    assert Trainer(make_task(), quick_config, device=CPU).loss.loss.size_power == 0.5
    assert SemiSupervisedTrainer(make_task(), quick_config, semi, device=CPU).loss.loss.size_power == 1.0


def test_only_models_without_pseudo_labels_look_for_the_right_turn(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    tasks = [make_task(name) for name in ("supervised", "student", "not planned")]
    turned = [dataclasses.replace(each, plan=dataclasses.replace(each.plan, quarter_turns=True)) for each in tasks[:2]]
    assert Trainer(turned[0], quick_config, device=CPU).fit()
    assert SemiSupervisedTrainer(turned[1], quick_config, semi, device=CPU).fit()
    assert Trainer(tasks[2], quick_config, device=CPU).fit()
    assert [load_checkpoint(task.folder.final).quarter_turns for task in tasks] == [True, False, False]


def test_it_trains_and_validates_on_real_labels(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    task = make_task()
    assert SemiSupervisedTrainer(task, quick_config, semi, device=CPU).fit()
    assert load_checkpoint(task.folder.final).iteration == 12
    assert load_checkpoint(task.folder.best).plan == task.plan


def test_a_labeled_case_is_never_replaced_by_its_pseudo_label(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    leaked = dataclasses.replace(semi.selection.selected[0], case_id="case_2")  # the validation case
    selection = dataclasses.replace(semi.selection, selected=(leaked,))
    leaking = dataclasses.replace(semi, selection=selection, labels={"case_2": semi.labels["scan_0"]})
    with pytest.raises(SelectionError, match="never replaced"):
        SemiSupervisedTrainer(make_task(), quick_config, leaking, device=CPU)


def test_fine_tuning_ends_a_training_on_real_labels_alone(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    trainer = SemiSupervisedTrainer(make_task(), quick_config, mixed(semi, fine_tune=0.25), device=CPU)
    assert quick_config.iterations == 12
    before, after = trainer.sampler.probabilities(8), trainer.sampler.probabilities(9)
    np.testing.assert_allclose(before, [0.125, 0.125, 0.375, 0.375])
    np.testing.assert_allclose(after, [0.5, 0.5, 0.0, 0.0])


def test_fine_tuning_needs_a_known_length(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, semi: SemiSupervision
) -> None:
    timed = dataclasses.replace(quick_config, iterations=None, time_budget_seconds=5.0)
    with pytest.raises(ConfigError, match="known length"):
        SemiSupervisedTrainer(make_task(), timed, mixed(semi, fine_tune=0.1), device=CPU)
