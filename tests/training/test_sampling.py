import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.geometry import BoundingBox, IntTriple
from flaresemi.io.case_store import CaseStore, StoredCase
from flaresemi.training import sampling
from flaresemi.training.augmentation import STRENGTHS, Augmentation, SecondView
from flaresemi.training.device_augmentation import DeviceAugmentation
from flaresemi.training.pasting import PastingSampler, pasted, random_box
from flaresemi.training.sampling import (
    AddressSampler,
    Batch,
    LabeledAndUnlabeled,
    PatchSampler,
    TrainingCase,
    build_loader,
    draw_start,
    training_region,
)
from tests.training.conftest import LABELS, stage_plan, write_case

CASES = tuple(TrainingCase(case_id=f"case_{number}", supervised=(1, 2)) for number in range(3))


def sampler(store: CaseStore, **changes: object) -> PatchSampler:
    plan = stage_plan()
    augmentation = Augmentation(plan.patch_zyx, plan.spacing_zyx_mm, "standard", (0, 2), LABELS.mirror_permutation)
    choices: dict = {
        "foreground_share": 0.5,
        "region_jitter_mm": 4.0,
        "outside_share": 0.0,
        "augmentations": {"standard": augmentation},
        "seed": 3,
    }
    plan = changes.pop("plan", plan)  # type: ignore[assignment]
    kind = changes.pop("kind", PatchSampler)
    return kind(store, changes.pop("cases", CASES), plan, **(choices | changes))  # type: ignore[arg-type]


def test_a_sample_depends_on_its_address_alone(store: CaseStore) -> None:
    one, other = sampler(store), sampler(store)
    for address in [(5, 1), (0, 0), (17, 1)]:
        other[(3, 0)]  # whatever was drawn in between
        a, b = one[address], other[address]
        np.testing.assert_array_equal(a.image_bczyx, b.image_bczyx)
        np.testing.assert_array_equal(a.label_bzyx, b.label_bzyx)
    assert not np.array_equal(one[(5, 1)].image_bczyx, one[(5, 0)].image_bczyx)
    assert not np.array_equal(one[(5, 1)].image_bczyx, sampler(store, seed=4)[(5, 1)].image_bczyx)


def test_workers_and_ranks_change_nothing(store: CaseStore) -> None:
    def batches(workers: int, positions: range) -> list[np.ndarray]:
        loader = build_loader(sampler(store), AddressSampler(range(2, 5), positions), workers)
        return [batch.image_bczyx for batch in loader]

    alone = batches(0, range(4))
    for here, there in zip(alone, batches(1, range(4)), strict=True):
        np.testing.assert_array_equal(here, there)
    for whole, first, second in zip(alone, batches(0, range(2)), batches(0, range(2, 4)), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate([first, second]))


def test_foreground_patches_show_each_organ_equally_often(store: CaseStore) -> None:
    drawn = sampler(store, foreground_share=1.0, augmentations={})
    shown = np.array([[(drawn[(i, 0)].label_bzyx == organ).any() for organ in (1, 2)] for i in range(60)])
    assert shown.any(axis=1).all()
    assert shown.sum(axis=0).min() > 20


def test_unsupervised_organs_are_declared_so(store: CaseStore) -> None:
    case = TrainingCase(case_id="right_only", supervised=(2,), weight=0.5)
    batch = sampler(store, cases=(case,), augmentations={})[(0, 0)]
    assert batch.supervised_bc.tolist() == [[True, False, True]]
    assert batch.weight_b.tolist() == [0.5]


def one_sample(image: np.ndarray, label: np.ndarray, supervised: list[bool], weight: float) -> Batch:
    return Batch(
        image, label, np.array([supervised]), np.full(1, weight, np.float32), np.array([True]), image
    )  # fmt: skip


def test_a_box_of_another_patch_is_pasted_with_its_label() -> None:
    shape = (12, 30, 21)
    zeros = np.zeros((1, 2, *shape), np.float32)
    patch = one_sample(zeros, np.zeros((1, *shape), np.uint8), [True, True, True], 1.0)
    places = set()
    for seed in range(50):
        box = random_box(shape, np.random.default_rng(seed))
        ones = np.ones((1, 2, *box.shape_zyx), np.float32)
        content = one_sample(ones, np.ones((1, *box.shape_zyx), np.uint8), [True, False, True], 0.5)
        made = pasted(patch, content, box)
        inside = np.argwhere(made.label_bzyx[0])
        size = np.ptp(inside, axis=0) + 1
        assert len(inside) == size.prod()  # one box
        assert all(length // 3 <= side <= 2 * length / 3 for length, side in zip(shape, size, strict=True))
        assert (made.image_bczyx == made.label_bzyx[:, None]).all()
        assert made.supervised_bc.tolist() == [[True, False, True]]
        assert made.weight_b.tolist() == [1.0]
        assert made.second_bczyx is made.image_bczyx
        places.add(tuple(inside.min(axis=0)))
    assert len(places) > 40
    assert not patch.image_bczyx.any()  # the patch itself is untouched


def test_a_part_of_a_patch_is_what_the_whole_has_there(store: CaseStore) -> None:
    """Where nothing is augmented; otherwise no more than the part is read with its surroundings and augmented."""
    case = TrainingCase(case_id="case_0", supervised=(1, 2), augmentation="none")
    samples = sampler(store, cases=(case,))
    for seed in range(10):
        box = random_box(samples.plan.patch_zyx, np.random.default_rng(100 + seed))
        whole, part = (samples.draw(case, np.random.default_rng(seed), each) for each in (None, box))
        np.testing.assert_array_equal(part.image_bczyx, whole.image_bczyx[..., *box.slices])
        np.testing.assert_array_equal(part.label_bzyx, whole.label_bzyx[..., *box.slices])


def test_no_more_than_a_part_is_read_and_augmented(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []

    def noted(
        stored: StoredCase, start_zyx: IntTriple, shape_zyx: IntTriple, **dtype: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        read.append(shape_zyx)
        return before(stored, start_zyx, shape_zyx, **dtype)

    before = StoredCase.read_patch
    monkeypatch.setattr(StoredCase, "read_patch", noted)
    case = TrainingCase(case_id="case_0", supervised=(1, 2))
    box = BoundingBox(start=(1, 0, 5), stop=(6, 10, 14))
    part = sampler(store, cases=(case,), second_view=SecondView("strong")).draw(case, np.random.default_rng(0), box)
    assert read == [(6, 12, 12)]
    assert part.image_bczyx.shape == part.second_bczyx.shape == (1, 1, 5, 10, 9)
    assert part.label_bzyx.shape == (1, 5, 10, 9)


def test_boxes_come_from_the_other_kind_of_case_while_both_are_drawn(store: CaseStore) -> None:
    labeled = TrainingCase(case_id="case_0", supervised=(1, 2))
    pseudo = TrainingCase(case_id="case_1", supervised=(2,), weight=0.5, last_iteration=100, is_pseudo=True)
    plan = stage_plan()
    upright = {"standard": Augmentation(plan.patch_zyx, plan.spacing_zyx_mm, "standard", (0,), (0, 2, 1))}
    plain = sampler(store, cases=(labeled, pseudo), augmentations=upright)
    with_boxes = sampler(store, cases=(labeled, pseudo), augmentations=upright, kind=PastingSampler, paste_share=1.0)
    for address in [(iteration, 0) for iteration in (0, 1, 2, 3, 98, 99)]:
        before, after = plain[address], with_boxes[address]
        assert after.weight_b == before.weight_b  # the same case, with something of the other one
        assert after.supervised_bc.tolist() == [[True, False, True]]
        assert not np.array_equal(before.image_bczyx, after.image_bczyx)
        assert (before.image_bczyx == after.image_bczyx).mean() > 0.5
    np.testing.assert_array_equal(plain[(100, 0)].image_bczyx, with_boxes[(100, 0)].image_bczyx)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_patches_stay_in_the_region_and_hold_their_center(data: st.DataObject) -> None:
    sizes = st.integers(1, 40)
    start = tuple(data.draw(st.integers(0, 10)) for _ in range(3))
    region = BoundingBox(start=start, stop=tuple(a + data.draw(sizes) for a in start))  # type: ignore[arg-type]
    patch = tuple(data.draw(st.sampled_from([8, 16])) for _ in range(3))
    center = np.array([data.draw(st.integers(a, b - 1)) for a, b in zip(region.start, region.stop, strict=True)])
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    first = draw_start(region, patch, center, generator)  # type: ignore[arg-type]
    for axis in range(3):
        low, high = first[axis], first[axis] + patch[axis]
        assert low <= center[axis] < high
        if region.shape_zyx[axis] >= patch[axis]:
            assert region.start[axis] <= low
            assert high <= region.stop[axis]
        else:
            assert low <= region.start[axis]
            assert region.stop[axis] <= high


def test_the_organs_region_holds_the_organs_and_moves(store: CaseStore) -> None:
    stored = store.open("case_0")
    plan = stage_plan(region="organs", margin_mm=6.0)
    boxes = [training_region(stored, plan, 4.0, np.random.default_rng(seed)) for seed in range(20)]
    organs = stored.record.organs_box
    assert organs is not None
    assert all(box.contains(organs) for box in boxes)  # the margin is larger than the jitter here
    assert len(set(boxes)) > 10
    assert (
        training_region(stored, stage_plan(), 4.0, np.random.default_rng(0)).shape_zyx == stored.record.grid.shape_zyx
    )


def test_some_patches_come_from_outside_of_the_region(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = []
    monkeypatch.setattr(sampling, "draw_start", lambda region, *_: regions.append(region) or region.start)
    plan = stage_plan(region="organs", margin_mm=6.0)
    for share, expected in ((0.0, 0), (0.25, 50), (1.0, 200)):
        drawn = sampler(store, plan=plan, outside_share=share, cases=CASES[:1], augmentations={})
        regions.clear()
        for iteration in range(200):
            drawn[iteration, 0]
        shape = store.open("case_0").record.grid.shape_zyx
        slack = 20 if 0 < share < 1 else 0
        assert abs(sum(region.shape_zyx == shape for region in regions) - expected) <= slack


@pytest.mark.parametrize("strength", sorted(STRENGTHS))
def test_mirroring_swaps_left_and_right(strength: str) -> None:
    """On one side the left organ, on the other the right one: after any flip, each label is still on its own side."""
    shape = (8, 8, 8)
    augmentation = Augmentation(shape, (1.0, 1.0, 1.0), strength, (2,), (0, 2, 1))
    augmentation.strength = type(augmentation.strength)(
        rotation_probability=0, rotation_degrees=1, scaling_probability=0, scaling=(1, 1), intensity_factor=0
    )
    augmentation.intensity = lambda data: {"data": data}
    label = np.zeros(augmentation.input_zyx, np.uint8)
    middle = label.shape[2] // 2
    label[:, :, :middle], label[:, :, middle:] = 2, 1
    image = np.arange(label.size, dtype=np.float32).reshape(1, *label.shape)
    flips = set()
    for seed in range(20):
        moved_image, moved, swapped = augmentation(image, label, np.zeros(1, np.float32), seed)
        assert (moved[:, :, :4] == 2).all()
        assert (moved[:, :, 4:] == 1).all()
        assert swapped == bool(moved_image[0, 0, 0, 0] > moved_image[0, 0, 0, -1])
        flips.add(swapped)
    assert flips == {True, False}


@pytest.mark.parametrize("organs", [None, ((1, 2), (1, 3), (2,), (3,))], ids=["organs", "regions"])
@pytest.mark.parametrize("on_device", [False, True])
def test_what_is_supervised_changes_sides_with_its_organ(tmp_path, on_device, organs) -> None:
    """Voxels of the one organ that is annotated are bright, and stay so: mirrored, they are those of its partner."""
    store, plan = CaseStore(tmp_path), stage_plan(patch_zyx=(8, 16, 16))
    write_case(store, "one", 0)
    stored = store.open("one")
    image, label = stored.read_patch((0, 0, 0), stored.record.grid.shape_zyx)
    store.write(stored.record, np.where(label == 2, 9.0, 0.0)[None].astype(np.float32), label)
    permutation = (0, 2, 1) if organs is None else (0, 1, 3, 2)  # index 1 of the regions lies in both of a pair
    known = 2 if organs is None else 3
    augmentation = Augmentation(plan.patch_zyx, plan.spacing_zyx_mm, "geometric", (0, 2), permutation)
    patches = sampler(
        store,
        plan=plan,
        organs=organs,
        cases=(TrainingCase(case_id="one", supervised=(known,), augmentation="geometric"),),
        augmentations={"geometric": augmentation},
        foreground_share=1.0,
        on_device=on_device,
    )
    seen = set()
    for iteration in range(40):
        batch = patches[(iteration, 0)]
        batch = DeviceAugmentation(torch.device("cpu"))(batch) if on_device else batch
        image, label = np.asarray(batch.image_bczyx)[0, 0], np.asarray(batch.label_bzyx)[0]
        (organ,) = np.flatnonzero(batch.supervised_bc[0, 1:]) + 1
        bright = image > 8.5
        if bright.any():
            assert {*np.unique(label[bright])} <= ({organ} if organs is None else {*organs[organ - 1]})
            seen.add(int(organ))
    assert len(seen) == 2, "mirrored ones and others"


def test_augmentation_is_seeded_and_keeps_labels_and_images_together() -> None:
    shape = (16, 16, 16)
    augmentation = Augmentation(shape, (1.0, 1.0, 1.0), "strong", (0, 1, 2), (0, 1))
    z, y, x = np.indices(augmentation.input_zyx)
    center = np.array(augmentation.input_zyx) / 2
    label = ((z - center[0]) ** 2 + (y - center[1] - 3) ** 2 + (x - center[2]) ** 2 < 20).astype(np.uint8)
    image = 10 * label[None].astype(np.float32) - 5
    for seed in range(30):
        a_image, a_label, swapped = augmentation(image, label, np.full(1, -5, np.float32), seed)
        b_image, _, _ = augmentation(image, label, np.full(1, -5, np.float32), seed)
        np.testing.assert_array_equal(a_image, b_image)
        assert not swapped, "there is nothing to swap"
        assert a_image.shape == (1, *shape)
        assert a_label.dtype == np.uint8
        assert set(np.unique(a_label)) <= {0, 1}
        inside, outside = a_image[0][a_label == 1], a_image[0][a_label == 0]
        if inside.size:
            assert inside.mean() > outside.mean() + 2


@pytest.mark.parametrize("thick", range(3), ids=["axial", "coronal", "sagittal"])
def test_thick_slices_are_rotated_in_their_plane_by_less_than_a_quarter(thick: int) -> None:
    shape, spacing = np.insert([32, 32], thick, 4).tolist(), np.insert([1.5, 1.5], thick, 8.0).tolist()
    augmentation = Augmentation(tuple(shape), tuple(spacing), "geometric", (), (0, 1))
    size = max(augmentation.input_zyx)
    assert augmentation.input_zyx == tuple(np.insert([size, size], thick, 4)), "no slices are read that are not used"
    across, down, right = np.indices((4, size, size))
    ball = (abs(across - 1) < 1) & (abs(down - 0.2 * size) < 3) & (abs(right - 0.5 * size) < 3)
    ball = np.moveaxis(ball, 0, thick)
    seen = set()
    for seed in range(200):
        _, label, _ = augmentation(ball[None].astype(np.float32), ball.astype(np.uint8), np.zeros(1, np.float32), seed)
        where = np.argwhere(np.moveaxis(label, thick, 0)) - (0, 15.5, 15.5)
        if len(where):
            assert set(where[:, 0]) == {1}, "slices stay where they are"
            _, y, x = where.mean(0)
            seen.add(("high" if y > 0 else "low") if abs(y) > abs(x) else ("right" if x > 0 else "left"))
    assert seen == {"low"}


def test_a_batch_for_a_gpu_is_pinned_and_the_same(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:  # which needs a GPU
        pinned.append(tensor.numel())
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = sampler(store)[(0, 0)]
    moved = batch.pin_memory()
    assert pinned == [16**3, 16**3]
    assert not np.shares_memory(moved.image_bczyx, batch.image_bczyx)
    for field in dataclasses.fields(batch):
        np.testing.assert_array_equal(getattr(moved, field.name), getattr(batch, field.name))
    addresses = AddressSampler(range(2), range(2))
    assert build_loader(sampler(store), addresses, 0, pin=True).pin_memory
    assert not build_loader(sampler(store), addresses, 0).pin_memory


def test_where_no_memory_can_be_pinned_a_batch_stays_where_it_is(
    store: CaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", full)
    batch = sampler(store)[(0, 0)]
    moved = batch.pin_memory()
    for field in dataclasses.fields(batch):
        np.testing.assert_array_equal(getattr(moved, field.name), getattr(batch, field.name))


def test_the_second_view_shows_the_same_voxels_otherwise(store: CaseStore) -> None:
    plain, seen_twice = sampler(store), sampler(store, second_view=SecondView("strong"))
    changed = 0
    for address in [(iteration, 0) for iteration in range(8)]:
        before, after = plain[address], seen_twice[address]
        np.testing.assert_array_equal(before.image_bczyx, after.image_bczyx)
        np.testing.assert_array_equal(before.label_bzyx, after.label_bzyx)
        assert before.second_bczyx is before.image_bczyx
        np.testing.assert_array_equal(after.second_bczyx, seen_twice[address].second_bczyx)
        assert after.second_bczyx.shape == after.image_bczyx.shape
        changed += not np.array_equal(after.second_bczyx, after.image_bczyx)
        inside = after.label_bzyx[0] > 0
        if inside.sum() > 50:  # the balls are where they were: still told from the rest by their brightness
            look = after.second_bczyx[0, 0]
            assert abs(np.corrcoef(look.ravel(), after.image_bczyx[0, 0].ravel())[0, 1]) > 0.5
    assert changed > 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_copies_the_second_view_only_where_there_is_one(store: CaseStore, workers: int) -> None:
    addresses = AddressSampler(range(1), range(2))
    (plain,) = build_loader(sampler(store), addresses, workers)
    assert plain.second_bczyx is plain.image_bczyx
    (twice,) = build_loader(sampler(store, second_view=SecondView("strong")), addresses, workers)
    assert not np.array_equal(twice.second_bczyx, twice.image_bczyx)


def test_unlabeled_samples_stand_behind_the_labeled_ones_of_their_rank(store: CaseStore) -> None:
    hidden = dataclasses.replace(CASES[2], supervised=(), is_labeled=False)
    labeled, unlabeled = sampler(store, cases=CASES[:2]), sampler(store, cases=(hidden,))
    both = LabeledAndUnlabeled(labeled, unlabeled, 2, 1)
    assert [case.case_id for case in both.cases] == ["case_0", "case_1", "case_2"]
    for position, (part, own) in enumerate(
        [(labeled, 0), (labeled, 1), (unlabeled, 0), (labeled, 2), (labeled, 3), (unlabeled, 1)]
    ):
        got, expected = both[(7, position)], part[(7, own)]
        np.testing.assert_array_equal(got.image_bczyx, expected.image_bczyx)
        assert got.labeled_b.tolist() == [part is labeled]
    assert not unlabeled[(7, 0)].label_bzyx.any()  # its label map is there, and is not looked at
    assert unlabeled[(7, 0)].weight_b.tolist() == [0.0]
    assert unlabeled[(7, 0)].supervised_bc.tolist() == [[True, False, False]]


def test_foreground_patches_are_drawn_on_regions_as_on_organs(store: CaseStore) -> None:
    cases = (TrainingCase(case_id="case_0", supervised=(1,), augmentation="none"),)
    drawn = {}
    for name, organs in (("both", ((1, 2), (2,))), ("second", ((2,), (1, 2)))):
        patches = sampler(store, cases=cases, organs=organs, foreground_share=1.0)
        batches = [patches[(iteration, 0)] for iteration in range(30)]
        assert {batch.supervised_bc.shape for batch in batches} == {(1, 3)}
        assert all(batch.supervised_bc.tolist() == [[True, True, False]] for batch in batches)
        drawn[name] = [set(np.unique(batch.label_bzyx)) - {0} for batch in batches]
    assert all(drawn["both"]) and {1} in drawn["both"] and {2} in drawn["both"]
    assert all(2 in found for found in drawn["second"])


def test_an_organ_of_one_index_is_drawn_as_without_regions(store: CaseStore) -> None:
    one, other = sampler(store), sampler(store, organs=((1,), (2,)))
    for address in [(0, 0), (3, 1)]:
        np.testing.assert_array_equal(one[address].image_bczyx, other[address].image_bczyx)
