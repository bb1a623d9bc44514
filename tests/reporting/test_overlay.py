import io

import matplotlib.image
import numpy as np
import pytest
from scipy import ndimage

from flaresemi.labels import Label, LabelSet
from flaresemi.reporting.overlay import (
    automatic_window,
    busiest_slices,
    is_overlay,
    review_picture,
    save_comparison,
    save_overlay,
)
from flaresemi.reporting.palette import organ_color

LABELS = LabelSet(labels=(Label(name="liver", value=1), Label(name="spleen", value=2)))


def draw(path, prediction, reference=None, spacing=(1.0, 1.0, 1.0), **options):
    """Draws over an even gray image; returns the picture and its three panels, which are gray as well."""
    image = np.full(prediction.shape, 50.0, np.float32)
    save_overlay(path, image, prediction, reference, LABELS, spacing, **options)
    picture = matplotlib.image.imread(path)[..., :3]
    patches, _ = ndimage.label(ndimage.binary_opening(picture.max(axis=2) > 0.25, iterations=2))
    boxes = [box for box in ndimage.find_objects(patches) if (box[0].stop - box[0].start) > 150]
    return picture, sorted(boxes, key=lambda box: box[1].start)


def center(panel, color):
    """Where a fill lies in a panel, as shares of its height and width."""
    red, green, blue = color
    strongest, weakest = int(np.argmax((red, green, blue))), int(np.argmin((red, green, blue)))
    rows, columns = np.nonzero(panel[..., strongest] - panel[..., weakest] > 0.1)
    return rows.mean() / panel.shape[0], columns.mean() / panel.shape[1]


def test_planes_hang_as_radiologists_read_them(tmp_path):
    """Canonical axes run to the head, the back and the left: an organ at the right, front and top of the patient."""
    prediction = np.zeros((20, 20, 20), np.uint8)
    prediction[14:18, 2:6, 2:6] = 1
    picture, boxes = draw(tmp_path / "overlay.png", prediction)
    assert len(boxes) == 3
    axial, coronal, sagittal = (center(picture[box], organ_color(1)) for box in boxes)
    assert axial == pytest.approx((0.2, 0.2), abs=0.03)  # front above, the patient's right on the left
    assert coronal == pytest.approx((0.2, 0.2), abs=0.03)  # head above, the patient's right on the left
    assert sagittal == pytest.approx((0.2, 0.2), abs=0.03)  # head above, face on the left
    prediction = np.zeros((20, 20, 20), np.uint8)
    prediction[2:6, 2:6, 14:18] = 1
    picture, boxes = draw(tmp_path / "overlay.png", prediction)
    axial, coronal, sagittal = (center(picture[box], organ_color(1)) for box in boxes)
    assert axial == pytest.approx((0.2, 0.8), abs=0.03)
    assert coronal == pytest.approx((0.8, 0.8), abs=0.03)
    assert sagittal == pytest.approx((0.8, 0.2), abs=0.03)


def test_panels_have_the_proportions_of_the_patient(tmp_path):
    prediction = np.zeros((10, 25, 20), np.uint8)
    prediction[4:6, 10:14, 8:12] = 1
    _, boxes = draw(tmp_path / "overlay.png", prediction, spacing=(4.0, 1.0, 2.0))
    ratios = [(box[0].stop - box[0].start) / (box[1].stop - box[1].start) for box in boxes]
    assert ratios == pytest.approx([25 / 40, 40 / 40, 40 / 25], rel=0.03)


def test_a_missed_organ_is_an_outline_and_an_invented_one_a_fill(tmp_path):
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[6:14, 4:16, 4:16] = 2
    nothing = np.zeros_like(reference)
    blue = organ_color(2)

    def share_colored(picture, box):
        panel = picture[box]
        return np.mean(panel[..., 2] - panel[..., 0] > 0.1)

    picture, boxes = draw(tmp_path / "missed.png", nothing, reference)
    assert 0.001 < share_colored(picture, boxes[0]) < 0.05
    picture, boxes = draw(tmp_path / "invented.png", reference, nothing)
    assert share_colored(picture, boxes[0]) == pytest.approx((12 / 20) ** 2, abs=0.03)
    assert blue[2] > blue[0]


def test_the_slices_are_those_with_most_organs():
    indices = np.zeros((12, 14, 16), np.uint8)
    indices[2:5, 1:13, 1:15] = 1  # large, alone in most slices
    indices[4:9, 3:5, 6:7] = 2
    z, y, x = busiest_slices(indices, 2)
    assert z == 4
    assert y in (3, 4)
    assert x == 6


def test_without_organs_the_middle_is_shown(tmp_path):
    nothing = np.zeros((12, 14, 16), np.uint8)
    assert busiest_slices(nothing, 2) == (6, 7, 8)
    _, boxes = draw(tmp_path / "empty.png", nothing, nothing, title="nothing here")
    assert len(boxes) == 3


def test_far_air_is_cut_off(tmp_path):
    """A small organ in a wide field is not lost in it."""
    prediction = np.zeros((40, 300, 300), np.uint8)
    prediction[18:22, 140:160, 140:160] = 1
    picture, boxes = draw(tmp_path / "overlay.png", prediction)
    panel = picture[boxes[0]]
    assert np.mean(panel[..., 0] - panel[..., 2] > 0.1) == pytest.approx((20 / 100) ** 2, abs=0.01)


def test_the_window_leaves_air_out():
    image = np.full((16, 32, 32), -1000.0, np.float32)
    image[:, 8:24, 8:24] = np.random.default_rng(0).normal(40, 20, (16, 16, 16))
    image[:, 15:17, 15:17] = 900.0
    low, high = automatic_window(image)
    assert -100 < low < 30
    assert 60 < high < 950
    flat = automatic_window(np.zeros((4, 4, 4), np.float32))
    assert flat[0] < flat[1]


def test_every_organ_has_a_color_of_its_own():
    colors = [organ_color(index) for index in range(1, 41)]
    assert all(0 <= part <= 1 for color in colors for part in color)
    distances = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) > 0.01
    assert organ_color(3) == organ_color(3)
    with pytest.raises(ValueError, match="count from 1"):
        organ_color(0)


def test_the_file_is_whole_and_alone(tmp_path):
    prediction = np.zeros((8, 8, 8), np.uint8)
    draw(tmp_path / "deep" / "overlay.png", prediction, window=(0.0, 100.0))
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["overlay.png"]


def test_other_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        save_overlay(tmp_path / "x.png", np.zeros((4, 4, 4)), np.zeros((4, 4, 5), int), None, LABELS, (1.0, 1.0, 1.0))
    assert not list(tmp_path.iterdir())


def test_two_predictions_stand_side_by_side_in_the_same_slices(tmp_path):
    """What the left one misses is an outline there, and a fill on the right."""
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[6:14, 6:14, 6:14] = 1
    nothing, image = np.zeros_like(reference), np.full(reference.shape, 50.0, np.float32)
    path = tmp_path / "both.png"
    spacing = (1.0, 1.0, 1.0)
    save_comparison(path, image, (nothing, reference), reference, LABELS, spacing, titles=("before", "after"))
    picture = matplotlib.image.imread(path)[..., :3]
    patches, _ = ndimage.label(ndimage.binary_opening(picture.max(axis=2) > 0.25, iterations=2))
    boxes = [box for box in ndimage.find_objects(patches) if (box[0].stop - box[0].start) > 150]
    assert len(boxes) == 6  # three planes, twice
    colored = [(np.ptp(picture[box], axis=2) > 0.1).mean() for box in sorted(boxes, key=lambda box: box[1].start)]
    assert max(colored[:3]) < 0.05 < 0.1 < min(colored[3:])
    assert {box[0].start for box in boxes[:1]} <= {box[0].start for box in boxes[1:]}  # in rows
    assert is_overlay(path)
    with pytest.raises(ValueError, match="one shape"):
        save_comparison(path, image, (nothing, reference[1:]), reference, LABELS, spacing, titles=("a", "b"))


def test_a_review_fills_what_is_used_and_hatches_what_is_rejected():
    """Of two equal organs the used one is colored throughout, the other by its outline and lines."""
    used = np.zeros((20, 20, 40), np.uint8)
    rejected = np.zeros_like(used)
    used[4:16, 4:16, 4:16] = 1
    rejected[4:16, 4:16, 24:36] = 2
    jpeg, (width, height) = review_picture(np.full(used.shape, 50.0, np.float32), used, rejected, (1.0, 1.0, 1.0))
    picture = matplotlib.image.imread(io.BytesIO(jpeg), format="jpeg").astype(int)
    assert picture.shape[:2] == (height, width)
    orange, blue = picture[..., 0] - picture[..., 2] > 25, picture[..., 2] - picture[..., 0] > 25

    def solid(colored):
        """Share of the leftmost colored patch's box that is colored."""
        patches, _ = ndimage.label(ndimage.binary_closing(colored, iterations=4))
        boxes = [box for box in ndimage.find_objects(patches) if box[1].stop - box[1].start > 50]
        return colored[min(boxes, key=lambda box: box[1].start)].mean()

    assert solid(orange) > 0.95
    assert 0.1 < solid(blue) < 0.9


def test_a_review_looks_at_the_organ_in_question():
    label = np.zeros((30, 20, 20), np.uint8)
    label[2:8, 4:16, 4:16] = 1
    label[22:26, 8:12, 8:12] = 2
    image = np.random.default_rng(0).normal(0, 1, label.shape).astype(np.float32)
    nothing = np.zeros_like(label)
    small, _ = review_picture(image, label, nothing, (1.0, 1.0, 1.0), focus=2)
    large, _ = review_picture(image, label, nothing, (1.0, 1.0, 1.0), focus=1)
    assert small != large
    everything = review_picture(image, label, nothing, (1.0, 1.0, 1.0))
    assert review_picture(image, label, nothing, (1.0, 1.0, 1.0), focus=3) == everything  # there is no third organ
    with pytest.raises(ValueError, match="one shape"):
        review_picture(image, label, label[1:], (1.0, 1.0, 1.0))
