"""Patches that the training's device augments: what the loader would have made of them, but for what is random."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from flaresemi.compute.card import no_waiting
from flaresemi.errors import ConfigError
from flaresemi.geometry import BoundingBox
from flaresemi.io.case_store import CaseStore
from flaresemi.records import from_plain, record_hash, to_plain
from flaresemi.training import device_augmentation, draws
from flaresemi.training.augmentation import Augmentation, SecondView, Strength
from flaresemi.training.config import MAY_CHANGE, TrainingConfig
from flaresemi.training.device_augmentation import DeviceAugmentation, augments_on_device
from flaresemi.training.draws import Changes
from flaresemi.training.history import read_history
from flaresemi.training.live_teacher import LiveTeacherTrainer
from flaresemi.training.losses import IGNORED
from flaresemi.training.pasting import PastingSampler
from flaresemi.training.patches import Batch, ReadBatch, ReadPatch, ReadSample
from flaresemi.training.runs import RunRecord
from flaresemi.training.sampling import AddressSampler, PatchSampler, TrainingCase, build_loader
from flaresemi.training.semi_supervised import SemiSupervisedTrainer
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer
from flaresemi.training.trainers import with_pseudo_labels
from tests.training.test_sampling import sampler

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICES = [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)]
LABELED = TrainingCase(case_id="case_0", supervised=(1, 2), augmentation="none")
PSEUDO = TrainingCase(case_id="case_1", supervised=(2,), weight=0.5, is_pseudo=True, augmentation="none")


def same(one: Batch, other: Batch) -> None:
    for field in dataclasses.fields(one):
        a, b = (torch.as_tensor(getattr(each, field.name)).cpu().numpy() for each in (one, other))
        np.testing.assert_array_equal(a, b, err_msg=field.name)


@pytest.mark.parametrize("device", DEVICES)
def test_unchanged_patches_are_those_of_the_loader(store: CaseStore, device: torch.device) -> None:
    """Also with pasted boxes, which both of them paste after all augmentation, and on their way between processes."""
    both: dict[str, Any] = {"cases": (LABELED, PSEUDO), "kind": PastingSampler, "paste_share": 0.6}
    addresses = AddressSampler(range(8), range(3))
    there = build_loader(sampler(store, on_device=True, **both), addresses, 0, pin=device.type == "cuda")
    augment = DeviceAugmentation(device)
    read = [pickle.loads(pickle.dumps(batch)) for batch in there]
    assert {sample.box is None for batch in read for sample in batch.samples} == {True, False}
    assert {patch.image_czyx.dtype for batch in read for sample in batch.samples for patch in sample.patches} == {
        np.dtype(np.float16)
    }
    for batch, expected in zip(read, build_loader(sampler(store, **both), addresses, 0), strict=True):
        found = augment(batch)
        assert found.image_bczyx.device.type == device.type
        assert found.image_bczyx.dtype == torch.float32
        assert found.second_bczyx is found.image_bczyx
        same(found, expected)


def partly_annotated(drawn: PatchSampler, monkeypatch: pytest.MonkeyPatch) -> PatchSampler:
    """Every fifth plane of its case is annotated by nobody, and its label map has a type for many labels."""
    stored = drawn._opened["case_0"]
    label = np.array(stored.label_zyx, np.uint16)
    label[:, ::5] = stored.record.ignored
    for name, value in {
        "record": dataclasses.replace(stored.record, annotated_voxels=1000),
        "label_zyx": label,
        "annotated_sample": lambda: np.empty((0, 3), np.int32),
    }.items():
        monkeypatch.setattr(stored, name, value)
    drawn._opened = {"case_0": stored}  # type: ignore[assignment]
    return drawn


def test_what_nobody_annotated_and_many_labels(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the image and inside, ignored voxels are; label maps of more than 255 values travel as well."""
    plain = partly_annotated(sampler(store, cases=(LABELED,)), monkeypatch)
    there = partly_annotated(sampler(store, cases=(LABELED,), on_device=True), monkeypatch)
    for address in [(0, 0), (1, 0), (2, 0)]:
        expected, found = plain[address], DeviceAugmentation(CPU)(there[address])  # type: ignore[arg-type]
        assert (expected.label_bzyx == IGNORED).any()
        same(found, expected)
    turned = sampler(store, on_device=True, cases=(dataclasses.replace(LABELED, augmentation="standard"),))
    turned._opened = there._opened
    monkeypatch.setattr(
        "flaresemi.training.sampling.draw_changes", lambda *_: Changes(scale=1.4, flips=(2,), swap=(0, 2, 1, 3))
    )
    found = DeviceAugmentation(CPU)(turned[(0, 0)])  # type: ignore[arg-type]
    assert (found.label_bzyx[0, 0] == IGNORED).all()  # it reaches beyond what was read
    assert set(found.label_bzyx.unique().tolist()) <= {IGNORED, 0, 1, 2}


def read_patch(image: np.ndarray, label: np.ndarray, patch: tuple[int, int, int], **settings: Any) -> ReadPatch:
    return ReadPatch(image_czyx=image, label_zyx=label, patch_zyx=patch, fill=(-5.0,) * len(image), **settings)


def as_batch(*samples: ReadSample) -> ReadBatch:
    count = len(samples)
    return ReadBatch(samples, np.ones((count, 2), bool), np.ones(count, np.float32), np.ones(count, bool))


@pytest.mark.parametrize("device", DEVICES)
def test_images_and_labels_stay_together(device: torch.device) -> None:
    augmentation = Augmentation((16, 16, 16), (1.0, 1.0, 1.0), "strong", (0, 1, 2), (0, 1))
    z, y, x = np.indices(augmentation.input_zyx)
    center = np.array(augmentation.input_zyx) / 2
    label = ((z - center[0]) ** 2 + (y - center[1] - 3) ** 2 + (x - center[2]) ** 2 < 20).astype(np.uint8)
    image = 10 * label[None].astype(np.float16) - 5
    augment = DeviceAugmentation(device)
    samples = [
        ReadSample(read_patch(image, label, (16, 16, 16), changes=draws.draw_changes(augmentation, 1, seed)))
        for seed in range(30)
    ]
    one, again = augment(as_batch(*samples)), augment(as_batch(*samples[::-1]))
    assert torch.equal(one.image_bczyx, again.image_bczyx.flip(0))
    assert set(one.label_bzyx.unique().tolist()) == {0, 1}
    assert one.label_bzyx.dtype == torch.int64
    for looks, where in zip(one.image_bczyx[:, 0].cpu(), one.label_bzyx.cpu(), strict=True):
        if where.any():
            assert looks[where == 1].mean() > looks[where == 0].mean() + 2


def test_mirroring_swaps_left_and_right() -> None:
    augmentation = Augmentation((8, 8, 8), (1.0, 1.0, 1.0), "geometric", (2,), (0, 2, 1))
    augmentation.strength = dataclasses.replace(augmentation.strength, rotation_probability=0, scaling_probability=0)
    label = np.ones(augmentation.input_zyx, np.uint8)
    label[:, :, : label.shape[2] // 2] = 2
    image = np.arange(label.size, dtype=np.float32).reshape(1, *label.shape)
    flips = set()
    for seed in range(20):
        changes = draws.draw_changes(augmentation, 1, seed)
        made = DeviceAugmentation(CPU)(as_batch(ReadSample(read_patch(image, label, (8, 8, 8), changes=changes))))
        assert (made.label_bzyx[..., :4] == 2).all()
        assert (made.label_bzyx[..., 4:] == 1).all()
        flips.add(bool(made.image_bczyx[0, 0, 0, 0, 0] > made.image_bczyx[0, 0, 0, 0, -1]))
    assert flips == {True, False}


def test_outside_is_what_the_case_has_there(store: CaseStore) -> None:
    patch = read_patch(np.ones((1, 8, 8, 8), np.float16), np.ones((8, 8, 8), np.uint8), (8, 8, 8), label_fill=2)
    made = DeviceAugmentation(CPU)(as_batch(ReadSample(dataclasses.replace(patch, changes=Changes(scale=1.4)))))
    assert (made.image_bczyx[..., 0] == -5).all()
    assert (made.label_bzyx[..., 0] == 2).all()
    np.testing.assert_allclose(made.image_bczyx[..., 4, 4, 4], 1, rtol=1e-5)
    read = sampler(store, on_device=True)[(0, 0)]
    assert isinstance(read, ReadBatch)
    assert {patch.fill for sample in read.samples for patch in sample.patches} <= {
        store.open(f"case_{number}").record.channel_minima for number in range(3)
    }


def test_a_box_and_both_views_come_from_the_other_patch() -> None:
    """The second view shows the voxels of the first, the pasted ones, too; what is beside the box is the patch's."""
    shape, box = (6, 8, 10), BoundingBox(start=(1, 2, 3), stop=(4, 6, 9))
    view = draws.IntensityChanges(brightness=(3.0,))
    outer = read_patch(np.ones((1, *shape), np.float16), np.zeros(shape, np.uint8), shape, second=view)
    inner = read_patch(
        np.full((1, *box.shape_zyx), 2, np.float16), np.ones(box.shape_zyx, np.uint8), box.shape_zyx, second=view
    )
    plain = read_patch(np.ones((1, *shape), np.float16), np.zeros(shape, np.uint8), shape)
    made = DeviceAugmentation(CPU)(as_batch(ReadSample(outer, inner, box), ReadSample(plain)))
    inside = np.zeros(shape, bool)
    inside[box.slices] = True
    np.testing.assert_array_equal(made.label_bzyx[0], inside)
    np.testing.assert_array_equal(made.image_bczyx[0, 0], 1 + inside)
    np.testing.assert_array_equal(made.second_bczyx[0, 0], 3 + 3 * inside)
    assert torch.equal(made.second_bczyx[1], made.image_bczyx[1])


@pytest.mark.parametrize("part", ["strength", "class", "second view"])
def test_what_is_not_flaresemis_own_is_augmented_by_the_loader(store: CaseStore, part: str) -> None:
    """Among samples that the device augments; what comes out is what it always was."""

    class Darker(Augmentation):
        def __call__(self, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray, bool]:
            image, label, swapped = super().__call__(*arguments, **named)
            return image - 1, label, swapped

    def more() -> list:
        return [lambda data: {"data": data + 100}]

    made = Augmentation((16, 16, 16), (2.0, 2.0, 2.0), "standard", (2,), (0, 2, 1))
    view = None
    if part == "class":
        made = Darker((16, 16, 16), (2.0, 2.0, 2.0), "standard", (2,), (0, 2, 1))
    elif part == "strength":
        made.strength = Strength(**dataclasses.asdict(made.strength) | {"more": more})
    else:
        view = SecondView("strong")
        view.strength = Strength(**dataclasses.asdict(view.strength) | {"more": more})
    case = dataclasses.replace(LABELED, augmentation="standard")
    both: dict[str, Any] = {"cases": (case, PSEUDO), "augmentations": {"standard": made}, "second_view": view}
    both |= {"kind": PastingSampler, "paste_share": 0.5}
    plain, there = sampler(store, **both), sampler(store, on_device=True, **both)
    for address in [(iteration, 0) for iteration in range(12)]:
        same(DeviceAugmentation(CPU)(there[address]), plain[address])  # type: ignore[arg-type]


def test_a_batch_for_a_gpu_is_pinned_and_the_same(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())  # which needs a GPU
    pasting: dict[str, Any] = {"cases": (LABELED, PSEUDO), "kind": PastingSampler, "paste_share": 1.0}
    batch = sampler(store, on_device=True, **pasting)[(0, 0)]
    assert isinstance(batch, ReadBatch)
    moved = batch.pin_memory()
    assert moved.samples[0].content is not None
    for mine, other in zip(batch.samples[0].patches, moved.samples[0].patches, strict=True):
        assert not np.shares_memory(mine.image_czyx, other.image_czyx)
        assert not np.shares_memory(mine.label_zyx, other.label_zyx)
    same(DeviceAugmentation(CPU)(moved), DeviceAugmentation(CPU)(batch))


@pytest.mark.gpu
def test_a_gpu_makes_what_a_processor_makes() -> None:
    """All but noise, which each draws in its own way, and the labels of voxels that lie just between two."""
    augmentation = Augmentation((16, 24, 32), (1.0, 1.0, 1.0), "strong", (0, 1, 2), (0, 2, 1))
    image = np.random.default_rng(0).normal(0, 1, (2, *augmentation.input_zyx)).astype(np.float16)
    label = (image[0] > 0).astype(np.uint8) + (image[1] > 0)
    samples = []
    for seed in range(40):
        changes = draws.draw_changes(augmentation, 2, seed)
        quiet = dataclasses.replace(changes.intensities, noise=None)
        changes = dataclasses.replace(changes, intensities=quiet)
        samples.append(ReadSample(read_patch(image, label, (16, 24, 32), changes=changes)))
    here, there = (DeviceAugmentation(device)(as_batch(*samples)) for device in (CPU, CUDA))
    np.testing.assert_allclose(here.image_bczyx, there.image_bczyx.cpu(), atol=5e-3)
    assert (here.label_bzyx != there.label_bzyx.cpu()).float().mean() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_training_is_the_one_that_never_stopped(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, device: torch.device
) -> None:
    config = dataclasses.replace(
        quick_config,
        augmentation_device="device",
        augmentation="strong",
        iterations=6,
        iterations_per_epoch=3,
        validations=0,
    )
    whole, parts = make_task("whole"), make_task("parts")
    assert Trainer(whole, config, device=device).fit()
    steps = iter(range(5))
    assert not Trainer(parts, config, device=device, stop_requested=lambda: next(steps) >= 3).fit()
    assert Trainer(parts, config, device=device).fit(resume=True)
    losses = [[row["loss"] for row in read_history(each.folder.history)] for each in (whole, parts)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0 if device == CPU else 1e-2)
    record = json.loads(whole.folder.run_record.read_text())
    assert (record["augmented_on"], record["config"]["augmentation_device"]) == ("device", "device")


def test_a_change_of_place_is_noted_when_a_training_goes_on(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig
) -> None:
    task, steps = make_task(), iter(range(7))
    assert not Trainer(task, quick_config, device=CPU, stop_requested=lambda: next(steps) >= 6).fit()
    assert "augmentation_device" in MAY_CHANGE
    there = dataclasses.replace(quick_config, augmentation_device="device")
    assert Trainer(task, there, device=CPU).fit(resume=True)
    changes = {change["name"]: change for change in json.loads(task.folder.run_record.read_text())["changes"]}
    assert changes.keys() == {"augmented_on", "config.augmentation_device"}
    assert (changes["augmented_on"]["before"], changes["augmented_on"]["after"]) == ('"cpu"', '"device"')
    assert changes["augmented_on"]["iteration"] == 7


def test_ranks_see_what_one_process_does(store: CaseStore) -> None:
    both: dict[str, Any] = {"on_device": True}
    augment = DeviceAugmentation(CPU)

    def images(positions: range) -> torch.Tensor:
        (batch,) = build_loader(sampler(store, **both), AddressSampler(range(5, 6), positions), 0)
        return augment(batch).image_bczyx

    assert torch.equal(images(range(4)), torch.cat([images(range(2)), images(range(2, 4))]))


@pytest.mark.parametrize("kind", ["live", "mixed"])
def test_trainings_with_pseudo_labels(
    make_task: Callable[..., TrainingTask],
    quick_config: TrainingConfig,
    make_semi: Callable[..., Any],
    kind: str,
) -> None:
    config = dataclasses.replace(quick_config, augmentation_device="device", trainer_settings={})
    trainer: Trainer
    if kind == "live":
        config = dataclasses.replace(config, trainer="live_teacher", trainer_settings={"waits": 0.25})
        trainer = LiveTeacherTrainer(make_task(), config, make_semi(paste_share=0.7), device=CPU)
    else:
        trainer = SemiSupervisedTrainer(make_task(), config, make_semi(paste_share=0.7), device=CPU)
    seen: list[Batch] = []
    step = trainer.training_step
    trainer.training_step = lambda network, batch: seen.append(batch) or step(network, batch)  # type: ignore
    assert trainer.fit()
    assert all(torch.is_tensor(batch.image_bczyx) for batch in seen)
    differing = [not torch.equal(batch.second_bczyx, batch.image_bczyx) for batch in seen]
    assert any(differing) is (kind == "live")


class OwnSteps(Trainer):
    """As an author wrote it who knew of arrays only."""

    def training_step(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return torch.from_numpy(batch.image_bczyx).mean() * 0 + super().training_step(network, batch)


class NewSteps(Trainer):
    """As one writes it who knows of tensors."""

    device_augmentation: ClassVar[bool] = True

    def training_step(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return torch.as_tensor(batch.image_bczyx).mean() * 0 + super().training_step(network, batch)


class OwnLoss(Trainer):
    def build_loss(self) -> torch.nn.Module:
        return super().build_loss()


def test_who_augments_where(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_augmentation, "_deviation", lambda device: None)
    for kind in (Trainer, SemiSupervisedTrainer, LiveTeacherTrainer, OwnLoss, with_pseudo_labels(NewSteps)):
        for asked, expected in (("auto", (False, True)), ("cpu", (False, False)), ("device", (True, True))):
            assert tuple(augments_on_device(asked, device, kind, "t") for device in (CPU, CUDA)) == expected
    assert not caplog.text
    for kind in (OwnSteps, with_pseudo_labels(OwnSteps)):
        caplog.clear()
        assert not augments_on_device("auto", CUDA, kind, "own")
        assert "trainer 'own' has its own training_step" in caplog.text
        with pytest.raises(ConfigError, match=r"(?s)'own' has its own training_step.*--augmentation-device cpu"):
            augments_on_device("device", CUDA, kind, "own")
        assert not augments_on_device("cpu", CUDA, kind, "own")


def test_a_device_that_computes_something_else_is_not_trusted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(DeviceAugmentation):
        """In place of a GPU: the processor, perhaps with a fault."""

        fault: float | None = 0.0

        def __init__(self, device: torch.device) -> None:
            super().__init__(CPU)
            self.is_faulty = device != CPU

        def __call__(self, batch: ReadBatch, *rest: Any) -> Batch:
            made = super().__call__(batch, *rest)
            if self.is_faulty and self.fault is None:
                raise RuntimeError("no kernel image is available\nmore")
            made.image_bczyx[..., -1] += (self.fault or 0.0) * self.is_faulty
            return made

    monkeypatch.setattr(device_augmentation, "DeviceAugmentation", Elsewhere)
    assert augments_on_device("auto", CUDA, Trainer, "t")
    assert not caplog.text
    Elsewhere.fault = 0.1
    assert not augments_on_device("auto", CUDA, Trainer, "t")
    assert "cuda makes something else of a patch than this processor, off by 0.1, in labels 0.0%" in caplog.text
    with pytest.raises(ConfigError, match="--augmentation-device cpu"):
        augments_on_device("device", CUDA, Trainer, "t")
    Elsewhere.fault = None
    assert not augments_on_device("auto", CUDA, Trainer, "t")
    assert "augmented on the CPU: cuda cannot do it: no kernel image is available" in caplog.text


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu(store: CaseStore) -> None:
    """After a first batch, which brings the table of sides there; from pinned memory, as the loader hands it over."""
    strong = Augmentation((16, 16, 16), (2.0, 2.0, 2.0), "strong", (2,), (0, 2, 1))
    drawn = sampler(store, on_device=True, augmentations={"standard": strong}, second_view=SecondView("strong"))
    first, *batches = build_loader(drawn, AddressSampler(range(20), range(2)), 0, pin=True)
    augment = DeviceAugmentation(CUDA)
    augment(first)
    augment._table((0, 2, 1, 3))
    with no_waiting():
        for batch in batches:
            augment(batch)


@pytest.mark.gpu
def test_a_gpu_is_trusted() -> None:
    assert augments_on_device("auto", CUDA, Trainer, "t")


def test_records_from_before_mean_the_loader() -> None:
    """Whether it is asked for, and where it was done."""
    config = TrainingConfig()
    assert config.augmentation_device == "auto"
    old = to_plain(dataclasses.replace(config, augmentation_device="cpu"))
    assert isinstance(old, dict)
    for name in ("augmentation_device", "trainer", "trainer_settings", "track"):
        del old[name]
    read = from_plain(TrainingConfig, old, source="run.json")
    assert read.augmentation_device == "cpu"
    assert record_hash(read) == record_hash(old)
    assert record_hash(config) == record_hash(old)  # where patches are augmented makes no other model
    (field,) = (each for each in dataclasses.fields(RunRecord) if each.name == "augmented_on")
    assert field.default == "cpu"


def test_the_loader_only_reads(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of batchgenerators runs in it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("augmented in the loader")

    monkeypatch.setattr(Augmentation, "__call__", refuse)
    monkeypatch.setattr(SecondView, "__call__", refuse)
    batch = sampler(store, second_view=SecondView("strong"), on_device=True)[(0, 0)]
    assert isinstance(batch, ReadBatch)
    assert isinstance(sampler(store), PatchSampler)
    patch = batch.samples[0].patch
    assert patch.image_czyx.shape == (1, 20, 20, 20)
    assert patch.patch_zyx == (16, 16, 16)
    assert patch.second is not None
