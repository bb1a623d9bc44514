"""The body crop: the patient whole, the table gone, and never a crash."""

import time

import numpy as np
import pytest
import torch

from flaresemi.geometry import BoundingBox
from flaresemi.io.images import read_image
from flaresemi.preprocessing import cropping
from flaresemi.preprocessing.cropping import find_body

SPACING = (2.5, 2.0, 2.0)


def ellipse(shape, center, radii) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1


def scan(shape=(40, 180, 180), air=-1000.0) -> tuple[np.ndarray, np.ndarray]:
    """A trunk with lungs on a table; the image and where the trunk is."""
    image = np.full(shape, air, np.float32)
    body = np.zeros(shape, bool)
    body[:] = ellipse(shape[1:], (80, 90), (50, 70))
    image[body] = 40
    image[:, ellipse(shape[1:], (80, 60), (30, 20))] = -850
    image[:, ellipse(shape[1:], (80, 120), (30, 20))] = -850
    image[:, 130:134, 20:160] = -200  # table top touches the back
    image[:, 150:153, 10:170] = -100
    image[:, 40:42, 2:30] = 0  # a blanket
    image += np.random.default_rng(0).normal(0, 15, shape).astype(np.float32)
    return image[None], body


def contains_closely(box: BoundingBox, truth: np.ndarray, slack: int) -> None:
    expected = BoundingBox.of_mask(truth)
    assert box.contains(expected)
    for low, high, a, b in zip(box.start, box.stop, expected.start, expected.stop, strict=True):
        assert a - low <= slack and high - b <= slack


@pytest.mark.parametrize("air", [-1000.0, -1024.0, -3024.0])
def test_ct_body_without_table_with_lungs(air):
    image, body = scan(air=air)
    box, mask = find_body(image, SPACING, "ct")
    contains_closely(box, body, slack=6)
    whole = np.zeros(body.shape, bool)
    whole[box.slices] = mask
    assert mask.shape == box.shape_zyx and mask.dtype == bool
    assert 2 * (whole & body).sum() / (whole.sum() + body.sum()) > 0.95, "lungs are inside, the table is not"


def test_two_legs_and_an_arm_are_kept():
    image = np.full((1, 60, 120, 120), -1000, np.float32)
    truth = ellipse((120, 120), (60, 30), (22, 22)) | ellipse((120, 120), (60, 90), (18, 18))
    image[0, :, truth] = 30
    box, _ = find_body(image, SPACING, "ct")
    contains_closely(box, np.broadcast_to(truth, (60, 120, 120)), slack=6)


def test_a_body_that_leaves_the_field_of_view_is_kept_to_the_border():
    image = np.full((1, 40, 100, 100), -1000, np.float32)
    image[:, :, 20:, :60] = 50
    box, _ = find_body(image, SPACING, "ct")
    assert box.start[0] == 0 and box.stop[0] == 40
    assert box.start[2] == 0 and box.stop[1] == 100
    assert 10 <= box.start[1] <= 20 and 60 <= box.stop[2] <= 70


@pytest.mark.parametrize("body", ["ct", "ct_parts", "foreground", "whole"])
@pytest.mark.parametrize("value", [-1000.0, 0.0, 40.0])
def test_nothing_to_find_gives_the_whole_image(body, value):
    image = np.full((1, 10, 20, 30), value, np.float32)
    box, mask = find_body(image, SPACING, body)
    assert box == BoundingBox.whole((10, 20, 30)) and mask.all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 200, 200), (1, 64, 64), (200, 3, 5)])
@pytest.mark.parametrize("body", ["ct", "ct_parts", "foreground", "whole"])
def test_thin_volumes(shape, body):
    image = np.full((1, *shape), -1000, np.float32)
    inner = tuple(slice(size // 4, max(size - size // 4, 1)) for size in shape)
    image[(0, *inner)] = 60
    box, mask = find_body(image, (1.0, 1.0, 1.0), body)
    assert mask.shape == box.shape_zyx
    assert box.contains(BoundingBox(start=tuple(s.start for s in inner), stop=tuple(s.stop for s in inner)))


def test_foreground_keeps_dark_anatomy_and_cuts_air():
    generator = np.random.default_rng(0)
    truth = np.zeros((40, 120, 120), bool)
    truth[:, 30:90, 20:100] = True
    image = np.abs(generator.normal(0, 8, truth.shape))
    image[truth] = generator.normal(400, 60, int(truth.sum()))
    image[:, 30:40, 20:100] = generator.normal(120, 10, (40, 10, 80))  # a dark layer of the patient
    box, mask = find_body(image[None].astype(np.float32), SPACING, "foreground")
    contains_closely(box, truth, slack=6)
    whole = np.zeros(truth.shape, bool)
    whole[box.slices] = mask
    assert (whole & truth).sum() > 0.97 * truth.sum()


@pytest.mark.parametrize("scale", [0.001, 1.0, 5000.0])
def test_foreground_without_air_is_everything(scale):
    image = np.random.default_rng(0).normal(100, 20, (1, 35, 50, 36)).astype(np.float32) * scale
    box, _ = find_body(image, (1.0, 1.0, 1.0), "foreground")
    assert box == BoundingBox.whole((35, 50, 36))


def test_channels_are_united():
    image = np.zeros((2, 40, 100, 100), np.float32)
    image[0, :, 20:40, 40:60] = 100
    image[1, :, 60:80, 40:60] = 3
    box, _ = find_body(image, SPACING, "foreground")
    assert box.start[1] <= 20 and box.stop[1] >= 80 and box.shape_zyx[2] < 50


def test_a_channel_that_is_not_in_hu_has_no_say_in_ct():
    image, body = scan()
    with_pet = np.concatenate([image, np.abs(image)])
    assert find_body(with_pet, SPACING, "ct")[0] == find_body(image, SPACING, "ct")[0]
    contains_closely(find_body(with_pet, SPACING, "ct")[0], body, slack=6)


def test_full_resolution_takes_no_time():
    image, _ = scan((100, 180, 180))
    image = np.repeat(np.repeat(image, 3, axis=2), 3, axis=3)[:, :, :512, :512]
    start = time.process_time()
    find_body(image, (2.5, 0.8, 0.8), "ct_parts")
    assert time.process_time() - start < 3.0


# Parts of the patient that are thin or lie apart ----------------------------------------------------------------------


def hand(fingers_mm: float = 15.0, table: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A palm and four fingers with bones, at 1 mm; the image, (Z, Y, X), and where the hand is."""
    z, y, x = np.indices((120, 90, 130))
    truth = (((x - 65) / 40) ** 2 + ((y - 40) / 15) ** 2 < 1) & (z < 60)
    image = np.full(truth.shape, -1000.0)
    for center in (37, 55.5, 74, 92.5):
        truth |= ((x - center) ** 2 + (y - 40) ** 2 < (fingers_mm / 2) ** 2) & (z >= 58) & (z < 115)
    image[truth] = 40
    for center in (37, 55.5, 74, 92.5):
        image[((x - center) ** 2 + (y - 40) ** 2 < (0.23 * fingers_mm) ** 2) & (z > 5) & (z < 112)] = 600
    below = 40 + int(fingers_mm / 2)
    if table:
        image[:, below : below + 6][~truth[:, below : below + 6]] = -150
    return image, truth


def lost(image: np.ndarray, truth: np.ndarray, body: str, spacing=(1.0, 1.0, 1.0)) -> float:
    """The share of the truth that a crop leaves out."""
    image = image + np.random.default_rng(0).normal(0, 15, image.shape)
    box, _ = find_body(image[None].astype(np.float32), spacing, body)
    return 1 - float(truth[box.slices].sum() / truth.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("fingers_mm", [9.0, 15.0])
def test_fingers_are_kept_along_every_axis(axis, fingers_mm):
    image, truth = (np.moveaxis(array, 0, axis) for array in hand(fingers_mm))
    assert lost(image, truth, "ct_parts") == 0
    assert lost(image, truth, "ct") > 0.05, "plans from before go on as they were"


@pytest.mark.parametrize("fingers_mm", [9.0, 15.0])
def test_a_hand_that_lies_on_a_table_is_kept(fingers_mm):
    assert lost(*hand(fingers_mm, table=True), "ct_parts") == 0


def test_of_two_hands_neither_is_left_out():
    image, truth = hand()
    shorter = image.copy(), truth.copy()
    for array, nothing in zip(shorter, (-1000, False), strict=True):
        array[:58] = nothing  # the fingers only
    together = (np.concatenate(pair, axis=2) for pair in zip((image, truth), shorter, strict=True))
    assert lost(*together, "ct_parts") == 0


def test_arms_beside_the_trunk_are_kept_and_the_table_is_not():
    _, y, x = np.indices((80, 130, 230))
    truth = ((x - 115) / 70) ** 2 + ((y - 55) / 45) ** 2 < 1
    for center in (25, 205):
        truth |= (x - center) ** 2 + (y - 60) ** 2 < 17**2
    image = np.where(truth, 40.0, -1000.0)
    image[:, 116:121] = -150
    box, _ = find_body(image[None].astype(np.float32), (3.0, 2.0, 2.0), "ct_parts")
    contains_closely(box, truth, slack=6)


@pytest.mark.parametrize("air", [-1000.0, -3024.0])
def test_a_trunk_on_its_table_keeps_its_box(air):
    image, _ = scan(air=air)
    (box, mask), (same_box, same_mask) = (find_body(image, SPACING, body) for body in ("ct", "ct_parts"))
    assert box == same_box
    np.testing.assert_array_equal(mask, same_mask)


def test_whole_is_whole_and_knows_tissue_from_air():
    image, body = scan()
    box, mask = find_body(image, SPACING, "whole")
    assert box == BoundingBox.whole(body.shape)
    assert mask[body].mean() > 0.95 and not mask[:, :20, :20].any()


# Real files ----------------------------------------------------------------------------------------------------------


def test_real_ct_table_is_cut_off(shared_data):
    image = read_image([shared_data / "crlm_ct" / "CRLM-CT-1004_0000.nii.gz"])
    box, mask = find_body(image.array_czyx, image.geometry.spacing_zyx_mm, "ct_parts")
    # Seen in a viewer: the patient lies between rows 118 and 410, the table's shell below to row 500.
    assert box.start[1] <= 118 and 410 <= box.stop[1] <= 430
    whole = np.zeros(image.array_czyx.shape[1:], bool)
    whole[box.slices] = mask
    assert not whole[:, 440:].any()


def test_real_heads_and_trunks_keep_their_boxes(shared_data):
    paths = [
        *sorted((shared_data / "openkbp" / "imagesTr").glob("*.nii.gz"))[::6],
        *sorted((shared_data / "btcv" / "imagesTr").glob("*.nii.gz"))[:1],
    ]
    for path in paths:
        image = read_image([path])
        boxes = {find_body(image.array_czyx, image.geometry.spacing_zyx_mm, body)[0] for body in ("ct", "ct_parts")}
        assert len(boxes) == 1, path.name


def test_a_real_neck_is_not_cut_off_below_the_head(shared_data):
    """Below the chin this masked scan goes on with the spine alone, 20 mm thick."""
    image = read_image([shared_data / "openkbp" / "imagesUn" / "okbp_221_0000.nii.gz"])
    box, _ = find_body(image.array_czyx, image.geometry.spacing_zyx_mm, "ct_parts")
    assert box.start[0] == 0


def test_real_labels_are_inside_the_body(shared_data):
    from flaresemi.io.images import read_label_map

    folder = shared_data / "totalsegmentator"
    pairs = [("example_ct.nii.gz", "example_ct_flare13_labels.nii.gz", "ct_parts")]
    for image_name, label_name, body in pairs:
        image, label = read_image([folder / image_name]), read_label_map(folder / label_name)
        box, mask = find_body(image.array_czyx, image.geometry.spacing_zyx_mm, body)
        labeled = label.array_zyx > 0
        assert box.contains(BoundingBox.of_mask(labeled))
        assert mask[labeled[box.slices]].mean() > 0.999


def test_real_tissue_crops_stay_whole(shared_data):
    for path in sorted((shared_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[::26]:
        image = read_image([path])
        box, mask = find_body(image.array_czyx, image.geometry.spacing_zyx_mm, "foreground")
        assert box == BoundingBox.whole(image.geometry.shape_zyx)
        assert mask.mean() > 0.8


@pytest.mark.parametrize("spacing", [1e-6, 1e-3, 1e3])
def test_a_wild_spacing_takes_no_time(spacing):
    image = np.full((1, 20, 40, 36), -1000.0, np.float32)
    image[:, :, 8:30, 5:30] = 40.0
    box, mask = find_body(image, (spacing,) * 3, "ct")
    assert box.contains(BoundingBox(start=(0, 8, 5), stop=(20, 30, 30)))
    assert mask.any()


@pytest.mark.parametrize("spacing", [(2.5, 2.0, 2.0), (1.3, 0.9, 0.7), (0.5, 0.4, 0.45), (9.0, 4.5, 6.0)])
@pytest.mark.parametrize("body", ["ct", "ct_parts", "foreground", "whole", "nonzero"])
def test_where_the_image_is_a_tensor_the_body_is_the_same(spacing, body):
    image, _ = scan()
    image = (image + np.random.default_rng(0).normal(0, 9, image.shape)).astype(np.float32)[..., :177]
    box, mask = find_body(image, spacing, body)
    found, found_mask = find_body(image, spacing, body, torch.from_numpy(image))
    assert found == box
    np.testing.assert_array_equal(found_mask, mask)


@pytest.mark.parametrize("blocks", [(1, 1, 1), (2, 5, 7), (3, 4, 6), (1, 9, 12), (30, 20, 17)])
def test_block_means_of_a_tensor_are_those_of_the_array(blocks):
    channel = np.random.default_rng(0).integers(-1024, 3000, (23, 41, 38)).astype(np.float32)
    found = cropping._device_means(torch.from_numpy(channel), blocks)
    expected = cropping._block_means(channel, blocks)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3)
